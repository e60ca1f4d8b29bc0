"""The seam over the kinds of batch-normalization layers: what a tool asks of one.

Keras' own layer, ours, and PyTorch's modules answer under the same names: what differs between
them is in the subclasses, and a new kind of layer is one more of those. `host_...` are flat float64
NumPy arrays of one value per channel, whatever the layer's axes are; `device_...` are tensors
`[1, C]` of the layer's framework.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np

from batchnorm import _axes
from batchnorm._moments import Moments
from batchnorm._plan import Plan
from batchnorm._weights import combined_weights
from batchnorm.backends import backend_of
from batchnorm.backends.composite import Case, statistics_dtype

Array = np.ndarray
SETTLED = 1e-8  # what may be left of a zero-debiased average's start

# `statistics` and `update_statistics`; layers that have no such options know the first two.
Stance = tuple[str, bool | str]
AUTO: Stance = ("auto", "auto")
HELD: Stance = ("moving", False)

# What a layer does that has no option for it.
DEFAULTS: dict[str, Any] = {
    "renorm": False,
    "renorm_clipping": None,
    "renorm_momentum": 0.99,
    "virtual_batch_size": None,
    "ghost_order": "strided",
    "adjustment": None,
    "pooled_moving_variance": False,
    "on_nonfinite": "propagate",
    "zero_debias": False,
    "activation": None,
}


def said_trained(scale: bool, center: bool, trains: bool) -> str:
    """A sentence on gamma and beta."""
    names = " and ".join(name for name, has in (("gamma", scale), ("beta", center)) if has)
    if not names:
        return "It has neither gamma nor beta."
    verb = "are" if scale and center else "is"
    return f"{names.capitalize()} {verb} {'trained' if trains else 'not trained'}."


class Frozen(NamedTuple):
    """Why training leaves the statistics alone, in a few words, and how to end that."""

    reason: str
    remedy: str


class Norm:
    """A batch-normalization layer with its name in the model; see the module's words.

    Attributes:
        unbiased: whether it remembers the variance divided by N - 1.
        momentum: the share of the old statistics that an update keeps; None where it is no number.
        initial: mean and variance before the first update; None where they are not constants.
        framework: the one that it is of, in a word.
        stances: those that it can take; None for any.
        takes: the options that it has and that can be set at any time.
        cumulative: whether it can average everything since its start (momentum None).
    """

    framework: str
    stances: tuple[Stance, ...] | None = (AUTO, HELD)
    takes: frozenset[str] = frozenset(("momentum", "epsilon"))
    cumulative = False
    unbiased = False
    momentum: float | None
    epsilon: float
    initial: tuple[float, float] | None = (0.0, 1.0)

    def __init__(self, layer: Any, name: str) -> None:
        self.layer, self.name = layer, name

    @property
    def owner(self) -> str:
        return f"{type(self.layer).__name__} {self.name!r}"

    # What the layer holds

    def host_statistics(self) -> tuple[Array, Array]:
        """Moving mean and variance."""
        raise NotImplementedError

    def set_host_statistics(self, mean: Array, variance: Array, which: Array | None = None) -> None:
        """Makes these the moving statistics, and everything that must agree with them.

        which: a mask of channels; the others keep all that they have.
        """
        self.put(self.agreeing(mean, variance), which)

    def put(self, values: dict[str, Array], which: Array | None = None) -> None:
        """Remembers these, in the core's names; what it does not hold follows from the others."""
        raise NotImplementedError

    def device_statistics(self, dtype: str) -> tuple[Any, Any]:
        """Moving mean and variance where the layer has them."""
        raise NotImplementedError

    def set_device_statistics(self, mean: Any, variance: Any) -> None:
        """Makes these the moving statistics of the call to come, inside a forward pass."""
        raise NotImplementedError

    def host_parameters(self) -> tuple[Array | None, Array | None]:
        """Gamma and beta; None for the one that the layer has not."""
        raise NotImplementedError

    def set_host_parameters(self, gamma: Array | None, beta: Array | None) -> None:
        """Makes these gamma and beta; None for the one that the layer has not."""
        raise NotImplementedError

    def affine(self) -> tuple[Array, Array]:
        """a and b of y = a * x + b: what the layer is in inference."""
        mean, variance = self.host_statistics()
        gamma, beta = self.host_parameters()
        with np.errstate(all="ignore"):
            a = (1.0 if gamma is None else gamma) / np.sqrt(variance + self.epsilon)
            return a, (0.0 if beta is None else beta) - mean * a

    def host_memory(self) -> dict[str, Array]:
        """Everything that is remembered of each channel, by name."""
        mean, variance = self.host_statistics()
        return {"moving_mean": mean, "moving_variance": variance}

    def memory(self) -> list[Any]:
        """Copies of everything that the layer remembers, bit for bit."""
        raise NotImplementedError

    def set_memory(self, memory: list[Any]) -> None:
        """What `memory` returned."""
        raise NotImplementedError

    def agreeing(self, mean: Array, variance: Array) -> dict[str, Array]:
        """Everything that must agree with these moving statistics, in the core's names."""
        values = {"moving_mean": mean, "moving_variance": variance}
        deviation = np.sqrt(variance + self.epsilon)
        if self.renorm():
            values |= {
                "moving_stddev": deviation,
                "renorm_mean": mean,
                "renorm_stddev": deviation,
            }
        if self.debias():
            # as after so many updates that nothing of the start is left
            momentum = self.momentum if self.momentum is not None else 0.0
            steps = 1 if momentum in (0, 1) else math.ceil(math.log(SETTLED) / math.log(momentum))
            values |= {"biased_mean": mean, "local_step": np.full(mean.shape, float(steps))}
        if self.settles_at_once():
            name, value = ("stddev", deviation) if self.renorm() else ("variance", variance)
            values[f"biased_{name}"] = value
        return values

    def unsound(self) -> Array:
        """Of which channels something is NaN, infinite, or a negative variance or deviation."""
        return np.any([_unsound(name, value) for name, value in self.host_memory().items()], axis=0)

    def unsound_statistics(self) -> Array:
        """Which channels have no sound moving statistics."""
        mean, variance = self.host_statistics()
        return _unsound("mean", mean) | _unsound("variance", variance)

    def updates(self) -> int | None:
        """How many updates the layer has counted; None where nothing counts them."""
        return None

    def set_updates(self, count: int) -> None:
        """Counts so many updates, where the layer counts them."""

    def skipped(self) -> int:
        """How many updates were refused for not being finite, in the worst channel."""
        return 0

    def untouched(self) -> bool:
        """Whether the statistics are still what they were at the start, in every channel."""
        if self.initial is None:
            return False
        pairs = zip(self.host_statistics(), self.initial, strict=True)
        return all(bool(np.all(value == start)) for value, start in pairs)

    # What it does

    def decides(self, training: bool) -> tuple[bool, bool]:
        """Whether the batch normalizes, and whether anything is remembered, in such a call."""
        raise NotImplementedError

    def group_size(self) -> int | None:
        """The size of ghost batches, if it normalizes those in training."""
        return None

    def renorm(self) -> bool:
        """Whether training pulls the batch's statistics to running ones."""
        return False

    def own_training(self) -> bool:
        """Whether training is more than normalizing with the batch's moments (renorm, ghosts)."""
        return False

    def debias(self) -> bool | str:
        """What is debiased by dividing the start out: False, "mean" or "both"."""
        return False

    def settles_at_once(self) -> bool:
        """Whether the first update leaves nothing of the start."""
        return self.debias() == "both"

    def in_training(self, call: Any, args: Any, kwargs: Any) -> Any:
        """The outputs of the layer's own call as in training."""
        raise NotImplementedError

    def last_plan(self) -> Plan | None:
        """How the core computed its last call, where that is kept."""
        return None

    def frozen(self) -> Frozen | None:
        """Why training leaves the statistics alone; None where it does not."""
        raise NotImplementedError

    def path(self) -> tuple[str, str | None]:
        """What runs, and why not our fused kernels."""
        raise NotImplementedError

    # What may be done to it

    def why_not_freeze(self, what: str) -> str | None:
        """Why only "both" can be frozen, and what to use instead; None where each can."""
        return None

    def freeze(self, what: str, on: bool) -> None:
        """Stops "statistics", "parameters" or "both", or lets them learn again."""
        raise NotImplementedError

    def mode(self) -> Any:
        """Everything that `freeze` changes, for `set_mode`."""
        raise NotImplementedError

    def set_mode(self, mode: Any) -> None:
        """What `mode` returned."""
        raise NotImplementedError

    # What another kind can take over from it, in the core's names and conventions

    def options(self) -> dict[str, Any]:
        """Its options; those that layers of its kind lack are as `DEFAULTS` has them."""
        return DEFAULTS | {
            "momentum": self.momentum,
            "epsilon": self.epsilon,
            "unbiased_moving_variance": self.unbiased,
        }

    def set_option(self, name: str, value: Any) -> None:
        setattr(self.layer, name, value)

    def stance(self) -> Stance:
        """What normalizes and what is remembered, whatever the mode of the model is."""
        return AUTO

    def take_stance(self, stance: Stance) -> None:
        self.freeze("statistics", stance == HELD)

    def trains(self) -> bool | None:
        """Whether gamma and beta are trained; None where the layer does not say."""
        raise NotImplementedError

    def sizes(self) -> tuple[int, ...]:
        """The sizes of the axes that keep their own statistics."""
        return (len(self.host_statistics()[0]),)

    # In words, in the convention of its framework

    def sentences(self) -> list[str]:
        """What its next call will do, and what is trained."""
        raise NotImplementedError

    def does(self, training: bool) -> str:
        """What such a call does."""
        batch, update = self.decides(training)
        if not batch:
            what = "normalizes with the moving statistics"
        elif (size := self.group_size()) is not None:
            what = f"normalizes ghost batches of {size} with their own statistics"
        else:
            what = "normalizes with the batch's own statistics"
        if batch and self.renorm():
            what += ", corrected by renorm,"
        which = "the moving ones" if batch else "them"
        if not update:
            return f"{what} and leaves {which} alone"
        return f"{what} and updates {which}{self.said_share()}"

    def said_share(self) -> str:
        """How much of the old statistics an update keeps, in brackets, or nothing."""
        return ""

    def said_momentum(self, momentum: float | None) -> str:
        """A momentum as users of its framework write it."""
        return "?" if momentum is None else f"{momentum:.3g}"

    def quicker(self, momentum: float) -> str:
        """How to come to this momentum, which is smaller than its own."""
        return f"lower the momentum to {self.said_momentum(momentum)}"

    def how_to_update(self) -> str:
        """What to do where no update ever ran."""
        raise NotImplementedError

    def how_to_bear_small_batches(self) -> str:
        """What to do where a batch says too little of the data."""
        raise NotImplementedError

    def lost_by_conversion(self) -> str | None:
        """What usual conversions of its framework would drop without a word, and which one."""
        return None

    # How it measures

    def axes(self, rank: int) -> tuple[int, ...]:
        raise NotImplementedError

    def measured(self, x: Any, mask: Any, batch_weights: Any) -> Moments:
        """The moments of all values of x per channel, `[1, C]`, count `[1, 1]`, on x's device."""
        ops = backend_of(x)
        view = _axes.view(ops.shape(x), self.axes(len(ops.shape(x))))
        dtype = statistics_dtype(ops.dtype(x))
        weights = combined_weights(ops, self.owner, view, x, dtype, mask, batch_weights)
        kernels = ops.kernels_for(x)
        steps = ops.COMPOSITE if isinstance(kernels, str) else kernels
        case = Case(view, weights, 0.0, None)
        (mean, remainder, variance, count), _ = steps.moments(x, case)
        flat = (1, view.features)
        count = ops.broadcast_to(count, (ops.shape(mean)[0], 1))[:1]  # the same for every channel
        mean, remainder, variance = (ops.reshape(v, flat) for v in (mean, remainder, variance))
        return Moments(mean, remainder, variance, count)


def _unsound(name: str, value: Array) -> Array:
    negative = (value < 0) & name.endswith(("variance", "stddev"))
    return ~np.isfinite(value) | negative

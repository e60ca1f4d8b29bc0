"""`torch.nn.BatchNorm1d` to `3d`, their lazy forms and `SyncBatchNorm`, in every mode."""

from __future__ import annotations

import dataclasses
import inspect
import math
from collections import deque
from typing import Any

import torch

from batchnorm._batch_norm import normalize
from batchnorm._options import Options
from batchnorm.backends import backend_of
from batchnorm.backends.torch.whole import InPlace
from batchnorm.torch.buffers import SKIPPED, Remembering
from batchnorm.torch.options import MODES, WATCHED, named, options_of

MADE = ("_options", "_plans", "_previous")  # attributes that follow from the others


class Modes(Remembering):
    """What our modules have in common. Each is torch's own module with more keywords.

    Everything of torch is as in torch: arguments and their order, defaults, `state_dict`, errors.
    `momentum` is the share of the new value, `None` the cumulative average, and `running_var`
    holds the unbiased variance. Any attribute can be set at any time, and is checked.

    Keyword arguments, which mean what they mean in `batchnorm.batch_norm`:
        renorm, renorm_clipping, renorm_momentum: batch renormalization. The bounds are numbers or
            functions of the step, a float tensor. `renorm_momentum` is the share of the new value;
            with None, r and d pull to the moving statistics and nothing more is remembered.
        virtual_batch_size: normalize ghost batches of this size, in training.
        ghost_order: how they are cut: "strided", or "chunks", as a loop over `x.chunk(...)` does.
        adjustment: a function of the input's shape that returns (scale, bias).
        synchronized: statistics over all processes: True, or a process group or its name.
        pooled_moving_variance: with ghost batches, remember the variance of the whole batch.
        statistics: what normalizes: "auto", "batch" or "moving".
        update_statistics: whether a call is remembered: "auto", True or False.
        on_nonfinite: "skip", "propagate" or "raise".
        zero_debias: False, "mean" (or True) or "both".
        activation: None or "relu", which runs inside the kernel.
        fused: None, True or False: whether a native kernel runs.

    What a mode remembers is in further buffers, which are there while the mode is on:
    `renorm_mean`, `renorm_stddev`, `biased_mean`, `biased_variance` (renorm: `biased_stddev`),
    `local_step`. `skipped_updates` counts, per channel, the updates that were refused for not being
    finite; it is not part of the `state_dict`.

    Raises:
        TypeError, ValueError: an argument is not what it must be.
    """

    _options: Options
    _after: tuple[str, ...] = ()  # children that run behind: of a converted layer of timm

    def __init_subclass__(cls) -> None:
        """Our keywords behind those of torch's class, in every version of it."""
        if Modes not in cls.__bases__:  # a subclass of a user, or of a parametrization
            return
        theirs = inspect.signature(getattr(torch.nn, cls.__name__)).parameters.values()
        ours = [
            inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default)
            for name, default in MODES.items()
        ]
        cls.__signature__ = inspect.Signature([*theirs, *ours])

    def __init__(self, *args: Any, **keywords: Any) -> None:
        modes = {name: keywords.pop(name, default) for name, default in MODES.items()}
        super().__init__(*args, **keywords)
        self.adopt(modes)

    def adopt(self, modes: dict[str, Any]) -> None:
        """Takes these modes, and holds what they remember."""
        modes["synchronized"] = named(modes["synchronized"])
        options = options_of({**self.__dict__, **modes}, type(self).__name__)
        self._check_tracking(modes)
        for name, value in modes.items():
            object.__setattr__(self, name, value)
        object.__setattr__(self, "_previous", deque(maxlen=8))
        self._plan(options)

    def __setattr__(self, name: str, value: Any) -> None:
        if name not in WATCHED or "_options" not in self.__dict__:
            super().__setattr__(name, value)
            return
        value = named(value) if name == "synchronized" else value
        modes = {**self.__dict__, name: value}
        options = options_of(modes, type(self).__name__)
        self._check_tracking(modes)
        super().__setattr__(name, value)
        self._plan(options)

    def __getstate__(self) -> dict[str, Any]:
        """What is copied and pickled: not what follows from it, and no calls that are under way."""
        return {name: value for name, value in self.__dict__.items() if name not in MADE}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        object.__setattr__(self, "_previous", deque(maxlen=8))
        self._plan(options_of(self.__dict__, type(self).__name__))

    def _check_tracking(self, modes: dict[str, Any]) -> None:
        """Refuses what needs moving statistics where there are none."""
        needing = {
            "renorm": modes["renorm"],
            "zero_debias": modes["zero_debias"],
            "statistics": modes["statistics"] == "moving",
            "update_statistics": modes["update_statistics"] is True,
        }
        if self.running_mean is None and (names := [name for name, on in needing.items() if on]):
            raise ValueError(
                f"{type(self).__name__}: track_running_stats must be True with "
                f"{names[0]}={modes[names[0]]!r}; got False. There are no moving statistics."
            )

    def _plan(self, options: Options) -> None:
        """Everything that a call needs to know and no call changes."""
        plans = {True: options, False: dataclasses.replace(options, update_statistics=False)}
        object.__setattr__(self, "_options", options)
        object.__setattr__(self, "_plans", plans)
        self.hold()

    def forward(
        self,
        input: torch.Tensor,
        mask: torch.Tensor | None = None,
        batch_weights: torch.Tensor | None = None,
        residual: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """`input` normalized, of its shape and type.

        Args:
            input: `[N, C]` or `[N, C, T]`, `[N, C, H, W]`, `[N, C, D, H, W]`.
            mask: `[N]`, or `[N, T]`, `[N, H, W]`, `[N, D, H, W]`: False excludes a position from
                the statistics. `mask_of_lengths` makes one from lengths.
            batch_weights: the same shapes; weight 2 counts like the same value twice.
            residual: of the input's shape: added before the activation.

        Raises:
            ValueError: the rank is another one, or training sees one value per channel.
        """
        if isinstance(input, torch.fx.Proxy):
            return self._as_leaf(input, mask, batch_weights, residual)
        self._check_input_dim(input)
        buffers = self.state_of()
        tracked = bool(buffers)
        training = self.training or not tracked
        options = self._options
        update = tracked and (
            options.update_statistics is True
            or (options.update_statistics == "auto" and self.training and self.track_running_stats)
        )
        if training and options.statistics != "moving":
            self._check_values(input)
        given = (mask, batch_weights, residual)
        y = self._normalized(self._plans[update], input, buffers, training, update, *given)
        for name in self._after:
            y = getattr(self, name)(y)
        return y

    def _normalized(
        self,
        options: Options,
        x: torch.Tensor,
        buffers: dict[str, torch.Tensor],
        training: bool,
        update: bool,
        mask: torch.Tensor | None,
        batch_weights: torch.Tensor | None,
        residual: torch.Tensor | None,
    ) -> torch.Tensor:
        ops = backend_of(x)
        recomputing = ops.recomputing()
        state = buffers
        if update and (options.renorm or options.statistics == "moving"):
            state = self._as_it_was(state, recomputing)
        if options.renorm_remembers:  # it follows from the variance
            stddev = torch.sqrt(state["moving_variance"] + options.epsilon)
            state = {**state, "moving_stddev": stddev}
        remembers = update and not recomputing
        if remembers and state is buffers:
            state = InPlace(state)
        given = (self.parameters_of(), state, training, mask, batch_weights)
        y, new = normalize(options, x, *given, residual=residual, ops=ops)
        if remembers and new is not state:
            for name, buffer in buffers.items():
                if new[name] is not buffer and not (name == SKIPPED and _captured(buffer)):
                    buffer.copy_(new[name])
        return y

    def _as_it_was(self, state: dict[str, Any], recomputing: bool) -> dict[str, Any]:
        """The state that has a part in this call's output: a recomputed call needs it once more."""
        if torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active():
            return state
        if recomputing:
            return self._previous.pop() if self._previous else state
        state = {name: value.clone() for name, value in state.items()}
        self._previous.append(state)
        return state

    def _check_values(self, x: torch.Tensor) -> None:
        """Refuses one value per channel in torch's words, unless other processes have more."""
        if x.shape[0] * math.prod(x.shape[2:]) == 1:
            options = self._options
            if options.synchronized and backend_of(x).find_replicas(
                options.synchronized, options.owner
            ):
                return
            raise ValueError(
                f"Expected more than 1 value per channel when training, got input size {x.shape}"
            )

    def _as_leaf(self, x: Any, *others: Any) -> Any:
        """This module as one node of `torch.fx.symbolic_trace`, as torch's own is."""
        given = dict(zip(("mask", "batch_weights", "residual"), others, strict=True))
        given = {name: value for name, value in given.items() if value is not None}
        path = x.tracer.path_of_module(self)
        return x.tracer.create_proxy("call_module", path, (x,), given)

    def __prepare_scriptable__(self) -> Any:
        """Called by `torch.jit.script`, which compiles Python of a kind that this is not.

        Raises:
            TypeError: always, with what to do instead.
        """
        raise TypeError(
            f"{type(self).__name__}: torch.jit.script cannot compile this module. For inference, "
            "call eval() and use torch.jit.trace or torch.export, or script a copy that "
            "batchnorm.torch.revert gave torch's own modules."
        )

    def extra_repr(self) -> str:
        changed = [
            f"{name}={getattr(self, name)!r}"
            for name, default in MODES.items()
            if getattr(self, name) != default
        ]
        return ", ".join([super().extra_repr(), *changed])


def _captured(buffer: torch.Tensor) -> bool:
    """Whether a transformation of torch.func runs that was not given this buffer.

    A `state_dict` does not hold the counter, so `functional_call` with one leaves it where it is.
    """
    functorch = torch._C._functorch
    active = torch._C._are_functorch_transforms_active()
    return active and not functorch.is_functorch_wrapped_tensor(buffer)


class BatchNorm1d(Modes, torch.nn.BatchNorm1d):
    """`torch.nn.BatchNorm1d` in every mode: inputs `[N, C]` or `[N, C, T]`. See `Modes`."""


class BatchNorm2d(Modes, torch.nn.BatchNorm2d):
    """`torch.nn.BatchNorm2d` in every mode: inputs `[N, C, H, W]`. See `Modes`."""


class BatchNorm3d(Modes, torch.nn.BatchNorm3d):
    """`torch.nn.BatchNorm3d` in every mode: inputs `[N, C, D, H, W]`. See `Modes`."""


class LazyBatchNorm1d(Modes, torch.nn.LazyBatchNorm1d):
    """`BatchNorm1d` that takes the number of channels from its first input."""

    cls_to_become = BatchNorm1d


class LazyBatchNorm2d(Modes, torch.nn.LazyBatchNorm2d):
    """`BatchNorm2d` that takes the number of channels from its first input."""

    cls_to_become = BatchNorm2d


class LazyBatchNorm3d(Modes, torch.nn.LazyBatchNorm3d):
    """`BatchNorm3d` that takes the number of channels from its first input."""

    cls_to_become = BatchNorm3d


class SyncBatchNorm(Modes, torch.nn.modules.batchnorm._BatchNorm):
    """What `torch.nn.SyncBatchNorm` is for, on any device and engine, for any rank from 2 on.

    It is synchronized unless `synchronized=False`. It is no instance of torch's class, which
    DistributedDataParallel refuses on the CPU. See `Modes`.
    """

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = True,
        track_running_stats: bool = True,
        process_group: Any = None,
        device: Any = None,
        dtype: Any = None,
        **keywords: Any,
    ) -> None:
        keywords.setdefault("synchronized", True if process_group is None else process_group)
        super().__init__(
            num_features, eps, momentum, affine, track_running_stats, device, dtype, **keywords
        )

    def _check_input_dim(self, input: torch.Tensor) -> None:
        if input.dim() < 2:
            raise ValueError(f"expected at least 2D input (got {input.dim()}D input)")

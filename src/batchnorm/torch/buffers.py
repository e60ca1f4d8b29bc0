"""What a module remembers: torch's buffers, and those of the modes that are on."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch.nn.parameter import UninitializedBuffer

from batchnorm._options import Options
from batchnorm._statistics import state_names

# The core's names of what torch has, or follows from it.
NAMES = {"moving_mean": "running_mean", "moving_variance": "running_var"}
SKIPPED = "skipped_updates"
NEEDED = {*NAMES.values(), "num_batches_tracked"}
LEARNED = {"weight", "bias"}


def further(options: Options) -> list[str]:
    """The buffers that torch's own module does not have."""
    known = (*NAMES, "moving_stddev")  # the deviation follows from the variance
    return [name for name in state_names(options) if name not in known]


class Remembering(torch.nn.modules.batchnorm._BatchNorm):
    """The buffers of a module, in the core's names and back."""

    _options: Options
    _further: tuple[str, ...] = ()

    def hold(self) -> None:
        """Holds the buffers that the options ask for, and no others."""
        names = further(self._options)
        wanted = (*names, SKIPPED) if self.running_mean is not None else ()
        for name in self._further:
            if name not in wanted:
                delattr(self, name)
        for name in wanted:
            if name not in self._buffers:
                self.register_buffer(name, self._first(name), persistent=name != SKIPPED)
        object.__setattr__(self, "_further", wanted)

    def _first(self, name: str) -> torch.Tensor:
        """A buffer as it is before the first update."""
        like = self.running_mean
        if isinstance(like, UninitializedBuffer):
            dtype = torch.int32 if name == SKIPPED else like.dtype
            empty: Any = UninitializedBuffer
            return empty(device=like.device, dtype=dtype)
        return self._following(name, self.running_mean, self.running_var, self.num_batches_tracked)

    def _following(
        self,
        name: str,
        mean: torch.Tensor,
        variance: torch.Tensor | None,
        updates: torch.Tensor | None,
    ) -> torch.Tensor:
        """What follows for a buffer from what torch's own module remembers."""
        if name == SKIPPED:
            return torch.zeros_like(mean, dtype=torch.int32)
        if name == "renorm_mean":
            return mean.clone()
        assert variance is not None
        stddev = torch.sqrt(variance + self._options.epsilon)
        if name == "renorm_stddev":
            return stddev
        steps = torch.zeros_like(mean) + (0 if updates is None else updates)
        if name == "local_step":
            return steps
        whole = {"biased_mean": mean, "biased_variance": variance, "biased_stddev": stddev}[name]
        return whole * (1 - self._options.momentum**steps)

    def parameters_of(self) -> dict[str, torch.Tensor]:
        """weight and bias in the core's names, where they are."""
        held: Mapping[str, torch.Tensor | None] = self._parameters  # as below
        if not held.keys() >= LEARNED:  # a parametrization computes them
            held = {name: getattr(self, name) for name in LEARNED}
        parameters = {}
        if (weight := held["weight"]) is not None:
            parameters["gamma"] = weight
        if (bias := held["bias"]) is not None:
            parameters["beta"] = bias
        return parameters

    def state_of(self) -> dict[str, torch.Tensor]:
        """The buffers in the core's names."""
        held = self._buffers  # a module's attributes take thrice as long to find
        if not held.keys() >= NEEDED:  # someone put attributes in their place
            held = {name: getattr(self, name) for name in (*NEEDED, *self._further)}
        if held["running_mean"] is None:
            return {}
        state = {name: held[theirs] for name, theirs in NAMES.items()}
        for name in self._further:
            state[name] = held[name]
        if held["num_batches_tracked"] is not None:
            state["num_updates"] = held["num_batches_tracked"]
        return state

    def reset_running_stats(self) -> None:
        super().reset_running_stats()
        if self.track_running_stats:
            for name in self._further:
                getattr(self, name).copy_(self._first(name))

    def initialize_parameters(self, input: torch.Tensor, *_: Any, **more: Any) -> None:
        """Lazy modules: the buffers of the modes get their size too."""
        for name in self._further:
            buffer = getattr(self, name)
            if isinstance(buffer, UninitializedBuffer):
                buffer.materialize((input.shape[1],))
        super().initialize_parameters(input)

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, *others: Any, **more: Any
    ) -> None:
        """Loads; what a state of torch's own module does not hold follows from what it does."""
        mean, variance, updates = (
            state_dict.get(prefix + name)
            for name in ("running_mean", "running_var", "num_batches_tracked")
        )
        if mean is not None and variance is not None:
            for name in self._further:
                if name != SKIPPED and prefix + name not in state_dict:
                    follows = self._following(name, mean, variance, updates)
                    state_dict[prefix + name] = follows
        super()._load_from_state_dict(state_dict, prefix, *others, **more)
        sized = not isinstance(self.running_mean, UninitializedBuffer)
        if mean is not None and SKIPPED in self._further and sized:
            # it counted for others; on the meta device, or just out of it, it held nothing
            setattr(self, SKIPPED, self._following(SKIPPED, self.running_mean, None, None))

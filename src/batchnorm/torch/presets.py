"""Options under the names of the papers and programs that they come from."""

from __future__ import annotations

import numbers
from dataclasses import dataclass
from typing import Any

import torch


@dataclass(frozen=True)
class Ramp:
    """A function of the step: `start` until step `begin`, `stop` from `end` on, linear between.

    With `inverse` it is 1 over that. A class, so that modules that hold one can be pickled.
    """

    start: float
    stop: float
    begin: int
    end: int
    inverse: bool = False

    def __call__(self, step: torch.Tensor) -> torch.Tensor:
        length = max(self.end - self.begin, 1)  # of no length: a jump, at `end`
        share = ((step - self.end) / length + 1).clamp(0, 1)
        if self.begin == self.end:
            share = (step >= self.end).to(step.dtype)
        value = self.start + (self.stop - self.start) * share
        return 1 / value if self.inverse else value


def preset(name: str, **changes: Any) -> dict[str, Any]:
    """The keywords of a module, or of `convert`, under a name: `BatchNorm2d(64, **preset(name))`.

    renorm: batch renormalization with the warm-up of its paper: plain until step 5,000, then r up
        to 3 at step 40,000 and d up to 5 at 25,000. Ioffe 2017, section 4.
    crossq: batch renormalization as critics of reinforcement learning use it: plain for 100,000
        steps, then r up to 3 and d up to 5 at once, against the moving statistics themselves.
        Bhatt et al. 2024, and the layers of torchrl and stable-baselines3.
    tabnet: ghost batches of 128 consecutive rows, the last of them smaller. Arik & Pfister 2021,
        and the layer of pytorch-tabnet.

    Args:
        changes: keywords that take the place of the preset's. `warmup`, for renorm and crossq, is
            the number of steps at the start that are plain; later steps move along.

    Raises:
        TypeError: warmup is no integer.
        ValueError: there is no preset of that name, it has no warm-up, or warmup is below 0.
    """
    if name not in ("renorm", "crossq", "tabnet"):
        raise ValueError(f"preset: name must be one of 'renorm', 'crossq', 'tabnet'; got {name!r}.")
    if name == "tabnet":
        if "warmup" in changes:
            raise ValueError(
                f"preset: warmup must be left out with 'tabnet'; got {changes['warmup']!r}."
            )
        options = {"virtual_batch_size": 128, "ghost_order": "chunks", "momentum": 0.02}
        return options | changes
    _check_steps(changes.get("warmup", 0))
    if name == "renorm":
        begin = changes.pop("warmup", 5_000)
        momenta: dict[str, Any] = {"momentum": 0.01, "renorm_momentum": 0.01}
        r_end, d_end = begin + 35_000, begin + 20_000
    else:
        begin = r_end = d_end = changes.pop("warmup", 100_000)
        momenta = {"momentum": 0.01, "renorm_momentum": None, "eps": 1e-3}
    clipping = {
        "rmax": Ramp(1.0, 3.0, begin, r_end),
        "rmin": Ramp(1.0, 3.0, begin, r_end, inverse=True),
        "dmax": Ramp(0.0, 5.0, begin, d_end),
    }
    return {"renorm": True, "renorm_clipping": clipping, **momenta} | changes


def _check_steps(warmup: Any) -> None:
    if isinstance(warmup, bool) or not isinstance(warmup, numbers.Integral):
        raise TypeError(f"preset: warmup must be a number of steps, an int >= 0; got {warmup!r}.")
    if warmup < 0:
        raise ValueError(f"preset: warmup must be a number of steps, an int >= 0; got {warmup}.")

"""What our layers of every framework answer alike: their options have the same names."""

from __future__ import annotations

from typing import Any

from batchnorm._plan import decide
from batchnorm.backends import why_not
from batchnorm.tools.norm import DEFAULTS, Norm, Stance


class Own(Norm):
    """A layer of ours, whatever its framework; inherited before the framework's kind."""

    stances: tuple[Stance, ...] | None = None
    takes = Norm.takes | set(DEFAULTS)

    @property
    def backend(self) -> Any:
        """Whose kernels it would run on, as `why_not` takes it: a framework, or one's tensor."""
        raise NotImplementedError

    def switches(self) -> Stance:
        """`statistics` and `update_statistics`."""
        return self.layer.statistics, self.layer.update_statistics

    def live(self, training: bool) -> bool:
        """Whether a call in training is one for this layer."""
        return training

    def decides(self, training: bool) -> tuple[bool, bool]:
        batch, update = decide(*self.switches(), self.live(training))
        return batch, update and self.momentum != 1

    def group_size(self) -> int | None:
        size: int | None = self.layer.virtual_batch_size
        return size

    def renorm(self) -> bool:
        return bool(self.layer.renorm)

    def debias(self) -> bool | str:
        kind = self.layer.zero_debias
        return "mean" if kind is True else kind

    def own_training(self) -> bool:
        layer = self.layer
        return self.renorm() or layer.adjustment is not None or self.group_size() is not None

    def path(self) -> tuple[str, str | None]:
        reason = "fused is False." if self.layer.fused is False else why_not(self.backend)
        return "composite operations" if reason else "fused kernels", reason

    def options(self) -> dict[str, Any]:
        own = {name: getattr(self.layer, name) for name in DEFAULTS}
        return super().options() | own | {"zero_debias": self.debias()}

    def stance(self) -> Stance:
        statistics, update = self.switches()
        if self.live(True):
            return statistics, update
        return (
            "moving" if statistics == "auto" else statistics,
            False if update == "auto" else update,
        )

    def take_stance(self, stance: Stance) -> None:
        self.layer.statistics, self.layer.update_statistics = stance

"""tf_slim with our batch normalization in the place of its own."""

from __future__ import annotations

import sys
from types import TracebackType
from typing import Any

from batchnorm.tf1.contrib import layers


def patch_tf_slim() -> Patch:
    """Puts `batchnorm.tf1.contrib.layers.batch_norm` wherever tf_slim's modules hold their own.

    From then on `slim.batch_norm`, the `arg_scope`s and `normalizer_fn`s that name it, and
    `tf_slim.nets` are ours: tf_slim's own (1.1.0) imports names that today's TensorFlow has not.
    Call it before the network is built; calling it again changes nothing.

        with batchnorm.tf1.patch_tf_slim():
            logits, _ = resnet_v1.resnet_v1_50(images, 10)

    Returns:
        The patch: `undo()`, or the end of a `with` block, puts back what this call has replaced.

    Raises:
        ImportError: tf_slim is not installed.
    """
    import tf_slim.nets  # noqa: F401  and with it all that holds the function

    module: Any = sys.modules["tf_slim.layers.layers"]  # tf_slim.layers hides it
    return Patch(module.batch_norm)


class Patch:
    """What `patch_tf_slim` has replaced, and how to put it back."""

    def __init__(self, original: Any) -> None:
        modules = [one for name, one in sys.modules.items() if name.split(".")[0] == "tf_slim"]
        self._replaced = [
            (module, name, original)
            for module in modules
            for name, value in vars(module).items()
            if value is original and value is not layers.batch_norm
        ]
        for module, name, _ in self._replaced:
            setattr(module, name, layers.batch_norm)

    def undo(self) -> None:
        """Puts tf_slim's own function back."""
        for module, name, original in self._replaced:
            setattr(module, name, original)
        self._replaced = []

    def __enter__(self) -> Patch:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.undo()

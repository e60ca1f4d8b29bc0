"""The network of the demo: the same convolutions for every kind of normalization."""

import keras

from batchnorm.demo.plan import Regime
from batchnorm.keras import BatchNormalization


def network(kind: str, regime: Regime, widths: tuple[int, ...]) -> keras.Model:
    """Convolutions of `widths` channels, each normalized as `kind` says, then ten logits.

    Shapes:
        images `[N, 8, 8, 1]` -> logits `[N, 10]`
    """
    images = x = keras.Input((8, 8, 1))
    for depth, width in enumerate(widths):
        # What follows normalization subtracts the mean: a bias before it would be lost.
        x = keras.layers.Conv2D(
            width, 3, strides=2 if depth == 1 else 1, padding="same", use_bias=kind == "none"
        )(x)
        if kind != "none":
            x = normalization(kind, regime)(x)
        x = keras.layers.ReLU()(x)
    x = keras.layers.GlobalAveragePooling2D()(x)
    return keras.Model(images, keras.layers.Dense(10)(x))


def normalization(kind: str, regime: Regime) -> keras.layers.Layer:
    """Layer of one kind, with the regime's momentum and ghost batch."""
    if kind == "batch":
        return BatchNormalization(momentum=regime.momentum)
    if kind == "renorm":
        return BatchNormalization(
            momentum=regime.momentum,
            renorm=True,
            renorm_momentum=regime.momentum,
            renorm_clipping=clipping(regime.steps),
        )
    if kind == "ghost":
        return BatchNormalization(momentum=regime.momentum, virtual_batch_size=regime.ghost)
    raise ValueError(
        f"normalization: kind must be 'batch', 'renorm' or 'ghost'; got {kind!r}. "
        "Leave the layer out for a network without normalization."
    )


def clipping(steps: int) -> dict[str, keras.optimizers.schedules.LearningRateSchedule]:
    """Bounds that start as plain batch normalization and open over a quarter of the run.

    Reference: Ioffe 2017, section 4: rmax to 3 and dmax to 5, opened slowly after a plain start.
    """
    opening = max(steps // 4, 1)

    def ramp(start: float, end: float) -> keras.optimizers.schedules.LearningRateSchedule:
        return keras.optimizers.schedules.PolynomialDecay(start, opening, end)

    return {"rmin": ramp(1.0, 1 / 3), "rmax": ramp(1.0, 3.0), "dmax": ramp(0.0, 5.0)}

"""`flax.nnx.BatchNorm` in every mode."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from batchnorm._batch_norm import normalize
from batchnorm._options import Options
from batchnorm.flax.options import (
    MODES,
    NAMES,
    first,
    further,
    hashable,
    mask_of,
    options_of,
    state_of,
    vector_shape,
)


class BatchNorm(nnx.BatchNorm):
    """`flax.nnx.BatchNorm`, with more keywords.

    Everything of flax is as in flax: arguments and defaults, the variables `scale`, `bias`
    (`nnx.Param`), `mean`, `var` (`nnx.BatchStat`), `train()`, `eval()`, `nnx.view`. Statistics are
    float32, however `dtype` and `promote_dtype` say that x and y are computed;
    `use_fast_variance` changes nothing, there is one variance, and it is right. With several axes,
    `num_features` is the product of their sizes.

    Keyword arguments, which mean what they mean in `batchnorm.batch_norm`: renorm, renorm_clipping,
    renorm_momentum, virtual_batch_size, ghost_order, adjustment, unbiased_moving_variance,
    pooled_moving_variance, statistics, update_statistics, on_nonfinite, zero_debias, activation,
    fused. `axis_name` is its `synchronized`: one name or several.

    What a mode remembers besides is in further `nnx.BatchStat`, which a plain module does not have:
    `renorm_mean`, `renorm_stddev`, `biased_mean`, `biased_variance` (renorm: `biased_stddev`),
    `local_step`, and the counters `num_updates` and `skipped_updates`.

    Raises:
        TypeError, ValueError: an argument is not what it must be.
    """

    def __init__(self, num_features: int, **keywords: Any) -> None:
        modes = {name: keywords.pop(name, default) for name, default in MODES.items()}
        super().__init__(num_features, **keywords)
        modes["renorm_clipping"] = hashable(modes["renorm_clipping"])
        for name, value in modes.items():
            setattr(self, name, value)
        options = options_of(self)
        for name in further(options):
            value = first(name, self.mean[...])
            setattr(self, name, nnx.BatchStat(value))

    def __call__(
        self,
        x: Any,
        use_running_average: bool | None = None,
        *,
        mask: Any = None,
        batch_weights: Any = None,
    ) -> jax.Array:
        """x normalized, in its shape; the statistics change in training.

        Args:
            x: of any rank.
            use_running_average: whether the moving statistics normalize and stay; None: as `eval()`
                and `train()` or the constructor say.
            mask: False excludes a position from the statistics. It broadcasts against x, with 1 on
                `axis`, or from the left: `[batch]`, `[batch, time]`.
            batch_weights: weight 2 counts like the same value twice; `[batch]`, ...
        """
        if use_running_average is None:
            use_running_average = self.use_running_average
        if use_running_average is None:
            raise ValueError(
                f"{type(self).__name__}: use_running_average must be True or False, here or in the "
                "constructor; got None in both. Call train() or eval() on the model, or pass it."
            )
        scale, bias = (None if one is None else one[...] for one in (self.scale, self.bias))
        x, *_ = self.promote_dtype(
            (x, self.mean[...], self.var[...], scale, bias), dtype=self.dtype
        )
        options = options_of(self)
        shape = vector_shape(x, options, self.mean[...])
        held = {**NAMES, **{name: name for name in further(options)}}
        state = {name: getattr(self, ours)[...] for name, ours in held.items()}
        given = {"gamma": scale, "beta": bias}
        y, new = normalize(
            options,
            x,
            {name: jnp.reshape(one, shape) for name, one in given.items() if one is not None},
            state_of(options, state, shape),
            not use_running_average,
            mask_of(x, mask, options),
            batch_weights,
        )
        if self._remembers(options, use_running_average):
            for name, ours in held.items():
                variable = getattr(self, ours)
                value = jnp.reshape(new[name], state[name].shape)
                value = jnp.asarray(value, state[name].dtype)
                variable.set_value(jax.lax.stop_gradient(value))
        return y

    @staticmethod
    def _remembers(options: Options, use_running_average: bool) -> bool:
        """Whether this call changes the statistics: else nothing is assigned."""
        update = options.update_statistics
        return not use_running_average if update == "auto" else update is True

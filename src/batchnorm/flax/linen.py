"""`flax.linen.BatchNorm` in every mode."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen
from flax.linen.dtypes import canonicalize_dtype
from flax.linen.module import merge_param

from batchnorm import _axes
from batchnorm._batch_norm import normalize
from batchnorm.flax.options import first, further, mask_of, options_of, state_of, vector_shape


class BatchNorm(linen.BatchNorm):
    """`flax.linen.BatchNorm`, with more attributes.

    Everything of flax is as in flax: attributes and defaults, `scale` and `bias` in `params`,
    `mean` and `var` in `batch_stats`, their names and shapes, `mutable`, and that `init` updates
    nothing. `use_fast_variance` and `force_float32_reductions` change no result: there is one
    variance, and it is computed in float32 (the latter says what type `mean` and `var` have).

    The further attributes mean what they mean in `batchnorm.batch_norm`, and what they remember
    besides is in `batch_stats`; see `batchnorm.flax.BatchNorm`.
    """

    renorm: bool = False
    renorm_clipping: Mapping[str, Any] | None = None
    renorm_momentum: float | None = 0.99
    virtual_batch_size: int | None = None
    ghost_order: str = "strided"
    adjustment: Callable[[Any], tuple[Any, Any]] | None = None
    unbiased_moving_variance: bool = False
    pooled_moving_variance: bool = False
    statistics: str = "auto"
    update_statistics: bool | str = "auto"
    on_nonfinite: str = "skip"
    zero_debias: bool | str = False
    activation: str | None = None
    fused: bool | None = None

    @linen.compact
    def __call__(
        self,
        x: Any,
        use_running_average: bool | None = None,
        *,
        mask: Any = None,
        batch_weights: Any = None,
    ) -> jax.Array:
        """x normalized, in its shape; `batch_stats` change in training, where they are mutable.

        Arguments: see `batchnorm.flax.BatchNorm`.
        """
        use_running_average = merge_param(
            "use_running_average", self.use_running_average, use_running_average
        )
        starting = self.is_initializing()
        options = options_of(self, synchronized=not starting, update=not starting)
        x = jnp.asarray(x)
        features = [x.shape[i] for i in _axes.resolve(options.axis, x.ndim, options.owner)]
        kind = jnp.float32 if self.force_float32_reductions else self.param_dtype
        held = {
            "moving_mean": self.variable("batch_stats", "mean", jnp.zeros, features, kind),
            "moving_variance": self.variable("batch_stats", "var", jnp.ones, features, kind),
        }
        mean = held["moving_mean"].value
        for name in further(options):
            held[name] = self.variable("batch_stats", name, first, name, mean)
        parameters = {}
        if self.use_scale:
            parameters["gamma"] = self.param("scale", self.scale_init, features, self.param_dtype)
        if self.use_bias:
            parameters["beta"] = self.param("bias", self.bias_init, features, self.param_dtype)
        dtype = canonicalize_dtype(x, *parameters.values(), dtype=self.dtype)
        shape = vector_shape(x, options, mean)
        y, new = normalize(
            options,
            jnp.asarray(x, jnp.promote_types(x.dtype, dtype)),
            {name: jnp.reshape(one, shape) for name, one in parameters.items()},
            state_of(options, {name: one.value for name, one in held.items()}, shape),
            not use_running_average,
            mask_of(x, mask, options),
            batch_weights,
        )
        update = options.update_statistics
        if update is True or (update == "auto" and not use_running_average):
            for name, variable in held.items():
                value = jnp.reshape(new[name], variable.value.shape)
                variable.value = jnp.asarray(value, variable.value.dtype)
        return jnp.asarray(y, dtype)

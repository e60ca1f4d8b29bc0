"""Mistakes that a type checker finds, one a line, each with the code of its error; and right lines.

Never run: test_types.py gives it to mypy, as a user would.
"""

import jax
import keras
import torch

import batchnorm
from batchnorm.keras import BatchNormalization, BatchNormalizationBase, SyncBatchNormalization

x, images = jax.numpy.ones((8, 3)), torch.ones(8, 3)
parameters, state = batchnorm.init(x)
model = keras.Sequential([BatchNormalization(momentum=0.9, renorm=True, name="first")])

# Right: what the README shows, and options in every form.
shown, state = batchnorm.batch_norm(x, parameters, state, training=True)
total: jax.Array = shown + 1
batchnorm.batch_norm(images, {}, {}, statistics="batch", update_statistics=False)
batchnorm.batch_norm(x, {}, {}, axis=(1, 2), zero_debias="both", on_nonfinite="raise")
BatchNormalizationBase([1, 3], renorm_clipping={"rmax": 3.0}, dtype="float16", activation="relu")
SyncBatchNormalization(-1, 0.9, name="second", statistics="moving", trainable=False)
why: str | None = batchnorm.why_not("jax")
healthy: bool = batchnorm.inspect(model, x).healthy

# The function.
batchnorm.batch_norm(x, parameters, state, statistics="nonsense")  # arg-type
batchnorm.batch_norm(x, parameters, state, update_statistics="never")  # arg-type
batchnorm.batch_norm(x, parameters, state, on_nonfinite="ignore")  # arg-type
batchnorm.batch_norm(x, parameters, state, zero_debias="variance")  # arg-type
batchnorm.batch_norm(x, parameters, state, momentun=0.9)  # call-arg
batchnorm.batch_norm(x)  # call-arg
batchnorm.batch_norm(x, parameters, state, True)  # call-arg
batchnorm.batch_norm(x, parameters, state, axis="last")  # arg-type
batchnorm.init(x, zero_debias="all")  # arg-type

# What it returns: y is of x's type.
y, state = batchnorm.batch_norm(x, parameters, state, training=True)
rows: int = y  # assignment
z, _ = batchnorm.batch_norm(images, parameters, state)
z.backwards()  # attr-defined
y.backward()  # attr-defined
one: jax.Array = batchnorm.batch_norm(x, parameters, state)  # assignment

# Names.
batchnorm.batchnorm(x, parameters, state)  # attr-defined
batchnorm.inspekt(model, x)  # attr-defined
batchnorm.BatchNormalization()  # attr-defined
from batchnorm import reestimat  # attr-defined
from batchnorm.keras import BatchNorm  # attr-defined

# The layers.
BatchNormalization(momentun=0.9)  # call-arg
BatchNormalization(statistics="nonsense")  # arg-type
BatchNormalization(virtual_batch_size="16")  # arg-type
BatchNormalization(zero_debias="variance")  # arg-type
BatchNormalizationBase(on_nonfinite="ignore")  # arg-type
BatchNormalizationBase(renorm_clippings={})  # call-arg
SyncBatchNormalization(epsilom=1e-3)  # call-arg
SyncBatchNormalization(synchronized=False)  # call-arg

# The tools.
batchnorm.reestimate(model)  # call-arg
batchnorm.inspect(model, x, batchsize=8)  # call-arg
batchnorm.inspect(model, x).helthy  # attr-defined

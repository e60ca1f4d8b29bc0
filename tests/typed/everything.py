"""Every public name, as a user would write it: type checkers have nothing to say. Never run."""

import flax.linen
import flax.nnx
import jax
import keras
import numpy as np
import tensorflow as tf
import torch

import batchnorm
import batchnorm.flax
import batchnorm.flax.linen
import batchnorm.keras
import batchnorm.tf1
import batchnorm.torch

version: str = batchnorm.__version__
reason: str | None = batchnorm.why_not("torch")

# The function, of each framework.
x, images, rows = jax.numpy.ones((8, 3)), torch.ones(8, 3, 4, 4), tf.ones((8, 3))
parameters, state = batchnorm.init(x, renorm=True)
y, state = batchnorm.batch_norm(x, parameters, state, training=True, renorm=True)
total: jax.Array = y + 1
shown, _ = batchnorm.batch_norm(images, *batchnorm.init(images, axis=1), axis=1)
difference: torch.Tensor = shown - images
batchnorm.batch_norm(rows, *batchnorm.init(rows), activation="relu", residual=rows)

# Keras.
layers = [
    batchnorm.keras.BatchNormalization(momentum=0.9, virtual_batch_size=16),
    batchnorm.keras.BatchNormalizationBase([1, 3], renorm=True),
    batchnorm.keras.SyncBatchNormalization(name="synchronized"),
]
model = keras.Sequential(layers)
average = batchnorm.keras.WeightAveraging(np.ones((8, 3)), "ema", decay=0.5)
names: list[str] = batchnorm.keras.set_synchronized(model, True)

# PyTorch.
mask = batchnorm.torch.mask_of_lengths(torch.tensor([3, 1]), 4)
one = batchnorm.torch.BatchNorm1d(3, activation="relu")
two = batchnorm.torch.BatchNorm2d(3, **batchnorm.torch.preset("renorm", warmup=10))
three = batchnorm.torch.BatchNorm3d(3, renorm_clipping={"rmax": batchnorm.torch.Ramp(1, 3, 0, 9)})
lazy = [
    batchnorm.torch.LazyBatchNorm1d(),
    batchnorm.torch.LazyBatchNorm2d(eps=1e-3),
    batchnorm.torch.LazyBatchNorm3d(momentum=None),
]
everywhere = batchnorm.torch.SyncBatchNorm(3)
module = torch.nn.Sequential(one, two, three, *lazy, everywhere)
converted: batchnorm.torch.Conversion = batchnorm.torch.convert(module, renorm=True)
names = batchnorm.torch.revert(module).converted

# flax.
nnx: flax.nnx.BatchNorm = batchnorm.flax.BatchNorm(3, renorm=True, rngs=flax.nnx.Rngs(0))
linen: flax.linen.BatchNorm = batchnorm.flax.linen.BatchNorm(use_running_average=False)

# TensorFlow 1.
y1 = batchnorm.tf1.layers.batch_normalization(rows, training=True)
layer = batchnorm.tf1.layers.BatchNormalization(axis=1, name="bn")
spec = batchnorm.tf1.layers.InputSpec(ndim=2)
y2 = batchnorm.tf1.contrib.layers.batch_norm(rows, is_training=False)
v1 = batchnorm.tf1.keras.layers.BatchNormalization(momentum=0.5)
batchnorm.tf1.patch_tf_slim().undo()
batchnorm.tf1.restore(None, "model.ckpt")

# Tools.
report = batchnorm.inspect(model, x, steps=2)
healthy: bool = report.healthy
lines: str = "\n".join(str(found) for found in report.diagnoses)
moved = batchnorm.reestimate(module, images, method="average").layers
with batchnorm.reestimated(model, x) as done, batchnorm.frozen(module, "statistics") as frozen:
    print(done, frozen)
print(batchnorm.repair(module).to_json(), batchnorm.explain(layer))
names = batchnorm.freeze(model, "both") + batchnorm.unfreeze(model)
names += batchnorm.set_synchronized(module, False)
folded = batchnorm.fold(model, x)
given: list[str] = [one.target for one in batchnorm.transfer(module, model).layers]

"""Handwritten digits on several replicas of TensorFlow, one batch-norm batch over all of them.

python examples/tensorflow_digits.py --replicas 2     # virtual CPUs; all GPUs where there are
TF_CONFIG='{"cluster": {"worker": ["A:1234", "B:1234"]}, "task": {"type": "worker",
    "index": 0}}' python examples/tensorflow_digits.py          # "index": 1 on machine B
"""

from __future__ import annotations

import argparse
import os

os.environ["KERAS_BACKEND"] = "tensorflow"

import keras
import tensorflow as tf
from sklearn.datasets import load_digits

import batchnorm
from batchnorm.keras import BatchNormalization

TEST = 297  # digits that are kept for testing


def strategy(replicas: int) -> tf.distribute.Strategy:
    """All workers of TF_CONFIG, else all GPUs, else so many virtual CPUs."""
    if "TF_CONFIG" in os.environ:
        return tf.distribute.MultiWorkerMirroredStrategy()
    if tf.config.list_physical_devices("GPU"):
        return tf.distribute.MirroredStrategy()
    cpu = tf.config.list_physical_devices("CPU")[0]
    logical = [tf.config.LogicalDeviceConfiguration()] * replicas
    tf.config.set_logical_device_configuration(cpu, logical)
    return tf.distribute.MirroredStrategy([f"CPU:{i}" for i in range(replicas)])


def network() -> keras.Model:
    layers = [keras.layers.Input((64,))]
    for _ in range(3):
        layers += [
            keras.layers.Dense(64, use_bias=False),
            BatchNormalization(momentum=0.9, activation="relu"),
        ]
    model = keras.Sequential([*layers, keras.layers.Dense(10)])
    batchnorm.set_synchronized(model, True)
    return model


def train(epochs: int, batch: int, over: tf.distribute.Strategy) -> float:
    """The share of test digits that the trained network knows."""
    images, labels = load_digits(return_X_y=True)  # 0 to 16, as they are: the layers normalize
    data = tf.data.Dataset.from_tensor_slices((images[:-TEST].astype("float32"), labels[:-TEST]))
    data = data.shuffle(2000, seed=0).batch(batch, drop_remainder=True)
    keras.utils.set_random_seed(0)
    with over.scope():
        model = network()
        optimizer = keras.optimizers.SGD(0.1, momentum=0.9)
        optimizer.build(model.trainable_variables)
    loss_of = keras.losses.SparseCategoricalCrossentropy(from_logits=True, reduction="sum")

    def step(x: tf.Tensor, y: tf.Tensor) -> None:
        with tf.GradientTape() as tape:
            loss = loss_of(y, model(x, training=True)) / batch
        variables = model.trainable_variables
        gradients = tape.gradient(loss, [one.value for one in variables])
        optimizer.apply(gradients, variables)  # adds them over the replicas

    @tf.function
    def update(x: tf.Tensor, y: tf.Tensor) -> None:
        over.run(step, (x, y))

    for _ in range(epochs):
        for x, y in over.experimental_distribute_dataset(data):
            update(x, y)
    known = tf.argmax(model(images[-TEST:], training=False), 1) == labels[-TEST:]
    return float(tf.reduce_mean(tf.cast(known, tf.float32)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--replicas", type=int, default=2)
    arguments = parser.parse_args()
    over = strategy(arguments.replicas)
    accuracy = train(arguments.epochs, arguments.batch, over)
    print(f"{over.num_replicas_in_sync} replicas, test accuracy {accuracy:.3f}")


if __name__ == "__main__":
    main()

"""A TensorFlow 1 program on today's TensorFlow: digits, UPDATE_OPS, a Session and a Saver.

Only the two calls of batch normalization differ from what it was: `tf.layers` and `tf.contrib` are
`batchnorm.tf1.layers` and `batchnorm.tf1.contrib`. It trains, saves, and evaluates what it restores
from the checkpoint into another graph.

    python examples/tf1_digits.py            (needs: pip install 'batchnorm[tensorflow,demo]')
"""

from __future__ import annotations

import argparse
import tempfile

import numpy as np
import sklearn.datasets
import tensorflow.compat.v1 as tf

import batchnorm.tf1

BATCH = 64


def digits():
    """(images, labels) to train with, and the same to evaluate with."""
    images, labels = sklearn.datasets.load_digits(return_X_y=True)
    images = images.reshape(-1, 8, 8, 1).astype("float32") / 16
    order = np.random.default_rng(0).permutation(len(labels))
    train, test = order[:1400], order[1400:]
    return (images[train], labels[train]), (images[test], labels[test])


def convolution(inputs, channels, name):
    """A 3 x 3 convolution, as `tf.layers.conv2d` made it."""
    with tf.variable_scope(name):
        shape = (3, 3, inputs.shape.as_list()[-1], channels)
        kernel = tf.get_variable("kernel", shape)
    return tf.nn.conv2d(inputs, kernel, strides=1, padding="SAME")


def network(images, training):
    """Logits of the ten digits."""
    hidden = convolution(images, 16, "conv1")
    hidden = batchnorm.tf1.layers.batch_normalization(
        hidden, momentum=0.9, training=training, name="bn1"
    )
    hidden = tf.nn.relu(hidden)
    hidden = tf.nn.max_pool2d(hidden, 2, 2, "SAME")
    hidden = convolution(hidden, 32, "conv2")
    hidden = batchnorm.tf1.contrib.layers.batch_norm(
        hidden, decay=0.9, activation_fn=tf.nn.relu, is_training=training, scope="bn2"
    )
    features = tf.reduce_mean(hidden, [1, 2])
    weights = tf.get_variable("logits/kernel", (32, 10))
    return tf.matmul(features, weights)


def train(data, steps, path):
    """Trains from scratch, saves, and returns the loss of the last step."""
    images, labels = data
    with tf.Graph().as_default(), tf.Session() as session:
        tf.set_random_seed(1)
        x = tf.placeholder(tf.float32, (None, 8, 8, 1))
        y = tf.placeholder(tf.int64, (None,))
        training = tf.placeholder_with_default(False, ())
        logits = network(x, training)
        loss = tf.losses.sparse_softmax_cross_entropy(y, logits)
        # the line that TensorFlow 1 programs forget: without it the moving statistics stay 0 and 1
        with tf.control_dependencies(tf.get_collection(tf.GraphKeys.UPDATE_OPS)):
            step = tf.train.AdamOptimizer(0.01).minimize(loss)
        session.run(tf.global_variables_initializer())
        generator = np.random.default_rng(1)
        for _ in range(steps):
            batch = generator.integers(0, len(labels), BATCH)
            feed = {x: images[batch], y: labels[batch], training: True}
            _, value = session.run([step, loss], feed)
        tf.train.Saver().save(session, path)
        return float(value)


def evaluate(data, path):
    """The share of digits that the network of a checkpoint names right, in inference."""
    images, labels = data
    with tf.Graph().as_default(), tf.Session() as session:
        x = tf.placeholder(tf.float32, (None, 8, 8, 1))
        logits = network(x, training=False)
        tf.train.Saver().restore(session, path)
        return float(np.mean(session.run(logits, {x: images}).argmax(1) == labels))


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=200)
    steps = parser.parse_args(arguments).steps
    known, unseen = digits()
    with tempfile.TemporaryDirectory() as folder:
        loss = train(known, steps, f"{folder}/digits")
        accuracy = evaluate(unseen, f"{folder}/digits")
    print(f"loss {loss:.3f} after {steps} steps, {accuracy:.1%} of unseen digits right")
    return accuracy


if __name__ == "__main__":
    main()

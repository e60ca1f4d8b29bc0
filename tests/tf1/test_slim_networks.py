"""tf_slim's networks on our function: they train, restore and evaluate like the original's."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import tensorflow as tf

import tf1_originals
from batchnorm import tf1

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    tf1_originals.slim()  # so that tf_slim's own function runs too, to compare with
    import tf_slim as slim
    from tf_slim.nets import inception_v3, resnet_utils, resnet_v1, resnet_v2

v1 = tf.compat.v1
ours = tf1.contrib.layers.batch_norm
RNG = np.random.default_rng(10)
LABELS = np.array([0, 1, 2, 1])


def resnet(module, block):
    def network(images, training):
        with slim.arg_scope(resnet_utils.resnet_arg_scope(batch_norm_decay=0.5)):
            logits, _ = module(images, [block("block1", 4, 1, 2)], 3, is_training=training)
        return tf.reshape(logits, (-1, 3))

    return network


def inception(images, training):
    """Up to the first mixed block: below it, at this size, four values make a statistic."""
    with (
        slim.arg_scope(inception_v3.inception_v3_arg_scope(batch_norm_decay=0.5)),
        slim.arg_scope([slim.batch_norm], is_training=training),
    ):
        net, _ = inception_v3.inception_v3_base(
            images, final_endpoint="Mixed_5b", min_depth=4, depth_multiplier=0.1
        )
        return slim.fully_connected(tf.reduce_mean(net, [1, 2]), 3, activation_fn=None)


def mobilenet(images, training):
    """MobileNet V1 as models/slim has it, beside tf_slim, with fewer and thinner layers."""
    params = {"center": True, "scale": True, "decay": 0.5, "is_training": training}
    with (
        slim.arg_scope(
            [slim.conv2d, slim.separable_conv2d],
            activation_fn=tf.nn.relu6,
            normalizer_fn=slim.batch_norm,
        ),
        slim.arg_scope([slim.batch_norm], **params),
        slim.arg_scope([slim.separable_conv2d], depth_multiplier=1),
        v1.variable_scope("MobilenetV1"),
    ):
        net = slim.conv2d(images, 4, 3, 2, scope="Conv2d_0")
        for i, (channels, stride) in enumerate([(8, 1), (8, 2)], 1):
            name = f"Conv2d_{i}"
            net = slim.separable_conv2d(net, None, 3, stride=stride, scope=f"{name}_depthwise")
            net = slim.conv2d(net, channels, 1, scope=f"{name}_pointwise")
        net = tf.reduce_mean(net, [1, 2])
        return slim.fully_connected(net, 3, activation_fn=None, scope="Logits")


NETWORKS = {
    "resnet_v1": (resnet(resnet_v1.resnet_v1, resnet_v1.resnet_v1_block), 20),
    "resnet_v2": (resnet(resnet_v2.resnet_v2, resnet_v2.resnet_v2_block), 20),
    "inception_v3": (inception, 40),
    "mobilenet_v1": (mobilenet, 12),
}


def train(network, images, start, path):
    """Two steps from a checkpoint, or from the start, which is then saved there."""
    with tf.Graph().as_default(), v1.Session() as session, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        v1.set_random_seed(1)
        x = v1.placeholder(tf.float32, images.shape)
        loss = v1.losses.sparse_softmax_cross_entropy(LABELS, network(x, True))
        optimizer = v1.train.GradientDescentOptimizer(0.01)
        step = slim.learning.create_train_op(loss, optimizer)  # it runs UPDATE_OPS
        session.run(v1.global_variables_initializer())
        saver = v1.train.Saver()
        if start is None:
            saver.save(session, f"{path}-start")
        else:
            saver.restore(session, start)
        losses = [session.run(step, {x: (1 + i) * images}) for i in range(2)]
        saver.save(session, path)
        return losses, {one.op.name: session.run(one) for one in v1.global_variables()}


def evaluate(network, images, path):
    with tf.Graph().as_default(), v1.Session() as session, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        x = v1.placeholder(tf.float32, images.shape)
        logits = network(x, False)
        assert v1.get_collection(v1.GraphKeys.UPDATE_OPS) == []
        v1.train.Saver().restore(session, path)
        return session.run(logits, {x: images})


@pytest.mark.parametrize("name", NETWORKS)
def test_a_network_trains_restores_and_evaluates_as_with_the_original(name, tmp_path):
    network, size = NETWORKS[name]
    images = RNG.normal(size=(4, size, size, 3)).astype("float32")
    theirs, mine, original = str(tmp_path / "theirs"), str(tmp_path / "mine"), slim.batch_norm
    want, states = train(network, images, None, theirs)
    outputs = evaluate(network, images, theirs)
    with tf1.patch_tf_slim():
        assert slim.batch_norm is ours
        losses, variables = train(network, images, f"{theirs}-start", mine)
        got = evaluate(network, images, mine)
    assert slim.batch_norm is original
    np.testing.assert_allclose(losses, want, rtol=1e-4)
    assert list(variables) == list(states)
    for one, value in states.items():
        np.testing.assert_allclose(variables[one], value, rtol=1e-4, atol=1e-4, err_msg=one)
    np.testing.assert_allclose(got, outputs, rtol=1e-3, atol=1e-3)


def test_the_patch_is_everywhere_once_and_undone():
    original = slim.batch_norm
    patch = tf1.patch_tf_slim()
    again = tf1.patch_tf_slim()
    assert slim.batch_norm is slim.layers.batch_norm is ours
    again.undo()
    assert slim.batch_norm is ours
    patch.undo()
    assert slim.batch_norm is slim.layers.batch_norm is original


@pytest.mark.parametrize("patched", [False, True])
@pytest.mark.parametrize("named", ["theirs", "ours"])
def test_scopes_of_either_function_reach_ours(graph, patched, named):
    patch = tf1.patch_tf_slim() if patched else None
    try:
        function = slim.batch_norm if named == "theirs" else ours
        with slim.arg_scope([function], scale=True, is_training=False):
            ours(v1.placeholder(tf.float32, (6, 4)), scope="bn")
    finally:
        if patch is not None:
            patch.undo()
    names = ["beta", "gamma", "moving_mean", "moving_variance"]
    assert sorted(one.op.name for one in v1.global_variables()) == [f"bn/{name}" for name in names]
    assert v1.get_collection(v1.GraphKeys.UPDATE_OPS) == []

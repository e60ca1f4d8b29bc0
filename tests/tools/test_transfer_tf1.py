"""Checkpoints of TensorFlow 1 by scope: numbers go over, nothing is run."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf
import torch
from flax import nnx

import batchnorm
import batchnorm.flax
import batchnorm.torch
from batchnorm import tf1

v1 = tf.compat.v1
X = np.random.default_rng(0).normal(1, 2, (16, 5)).astype(np.float32)


def trained(path: str, scopes: dict[str, dict]) -> dict[str, np.ndarray]:
    """A network of one normalization in each scope, trained and saved; its outputs in inference."""
    with tf.Graph().as_default(), v1.Session() as session:
        x, outputs = v1.placeholder(tf.float32, (None, 5)), {}
        for scope, options in scopes.items():
            with v1.variable_scope(scope, reuse=v1.AUTO_REUSE):
                for training in (True, False):
                    given = {"is_training": training, "scale": True, "scope": "bn", **options}
                    outputs[scope] = tf1.contrib.layers.batch_norm(x, **given)
        v1.train.get_or_create_global_step()  # further variables do not disturb
        session.run(v1.global_variables_initializer())
        for one in v1.trainable_variables():
            session.run(v1.assign_add(one, np.linspace(0.5, 1.5, 5, dtype=np.float32)))
        for _ in range(4):
            session.run(v1.get_collection(v1.GraphKeys.UPDATE_OPS), {x: X})
        v1.train.Saver().save(session, path)
        return session.run(outputs, {x: X})


def test_scopes_go_into_modules_that_compute_the_same(tmp_path):
    path = str(tmp_path / "model")
    expected = trained(path, {"net/one": {}, "net/two": {"decay": 0.5}})
    model = torch.nn.Sequential(*(torch.nn.BatchNorm1d(5, eps=1e-3) for _ in range(2)))
    done = batchnorm.transfer(path, model, mapping={"net/two/bn": "0", "net/one/bn": "1"})
    assert [(one.source, one.target) for one in done.layers] == [
        ("net/two/bn", "0"),
        ("net/one/bn", "1"),
    ]
    with torch.no_grad():
        for module, scope in zip(model.eval(), ("net/two", "net/one"), strict=True):
            y = module(torch.as_tensor(X))
            np.testing.assert_allclose(y, expected[scope], rtol=1e-6, atol=2e-6)


def test_a_folder_serves_and_nnx_takes_what_modes_remember(tmp_path):
    options = {"renorm": True, "zero_debias_moving_mean": True, "decay": 0.9}
    expected = trained(str(tmp_path / "model"), {"net": options})["net"]
    module = batchnorm.flax.BatchNorm(
        5, epsilon=1e-3, renorm=True, zero_debias="mean", rngs=nnx.Rngs(0)
    )
    batchnorm.transfer(tmp_path, module)
    y = module(X, use_running_average=True)
    np.testing.assert_allclose(y, expected, rtol=1e-6, atol=2e-6)
    reader = tf.train.load_checkpoint(str(tmp_path / "model"))
    for ours, theirs in {
        "renorm_mean": "renorm_mean",
        "renorm_stddev": "renorm_stddev",
        "biased_mean": "net/bn/moving_mean/biased",
    }.items():
        np.testing.assert_array_equal(
            getattr(module, ours)[...], reader.get_tensor(f"net/bn/{theirs}")
        )
    assert set(np.asarray(module.local_step[...])) == {4}


def test_renorm_of_1x_is_divided_by_its_weights(tmp_path):
    """As `batchnorm.tf1.restore` reads them."""
    path = str(tmp_path / "model")
    values = {
        "moving_mean": [3.0, 4.0],
        "moving_variance": [5.0, 6.0],
        "renorm_mean": [1.5, 3.0],
        "renorm_mean_weight": 0.75,
        "renorm_stddev": [1.0, 2.0],
        "renorm_stddev_weight": 0.5,
    }
    with tf.Graph().as_default(), v1.Session() as session:
        for name, value in values.items():
            v1.get_variable(f"bn/{name}", initializer=tf.constant(value))
        session.run(v1.global_variables_initializer())
        v1.train.Saver().save(session, path)
    module = batchnorm.torch.BatchNorm1d(2, renorm=True, affine=False)
    batchnorm.transfer(path, module)
    np.testing.assert_array_equal(module.renorm_mean, [2, 4])
    np.testing.assert_array_equal(module.renorm_stddev, [2, 4])


def test_what_a_checkpoint_does_not_say_is_asked_for(tmp_path):
    path = str(tmp_path / "model")
    trained(path, {"net/one": {"scale": False}, "net/two": {}})
    model = torch.nn.Sequential(*(torch.nn.BatchNorm1d(5) for _ in range(2)))
    one = {"mapping": {"net/one/bn": "0"}}
    for arguments, message in (
        (
            {},
            "transfer: mapping must say which layer goes where, for a checkpoint has no order; got "
            "None. The source has 2: 'net/one/bn', 'net/two/bn'; the target 2: '0', '1'.",
        ),
        (
            one,
            "transfer: BatchNorm1d '0' must have no gamma (scale), as scope 'net/one/bn' has; got "
            "one. Build it so.",
        ),
        (
            {**one, "data": X},
            "transfer: data must be None for a checkpoint, which cannot be run; got ndarray.",
        ),
    ):
        with pytest.raises(ValueError, match="transfer") as caught:
            batchnorm.transfer(path, model, **arguments)
        assert str(caught.value) == message
    with pytest.raises(ValueError, match="prefix of a checkpoint") as caught:
        batchnorm.transfer(str(tmp_path / "none"), model)
    assert str(tmp_path / "none") in str(caught.value)

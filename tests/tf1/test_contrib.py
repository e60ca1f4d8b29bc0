"""`tf.contrib` batch normalization: every argument, and every two that the original kept apart."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf

import tf1_originals
from batchnorm import tf1
from reference import batch_norm as reference

v1 = tf.compat.v1
contrib = tf1.contrib.layers.batch_norm
RNG = np.random.default_rng(3)
X = RNG.normal(2.0, 3.0, (6, 3, 2, 4)).astype("float32")
WEIGHTS = np.array([1, 2, 0, 0.5, 3, 1], "float32")


def placeholder(*shape, dtype="float32"):
    return v1.placeholder(dtype, shape)


def run(session, fetches, feed=None):
    session.run(v1.global_variables_initializer())
    return session.run(fetches, feed)


def one_step(options, x=X):
    """(y, state by name) of ours after a step."""
    with tf.Graph().as_default(), v1.Session() as session:
        given = placeholder(*x.shape, dtype=x.dtype)
        y = contrib(given, scope="bn", **options)
        updates = v1.get_collection(v1.GraphKeys.UPDATE_OPS)
        y, _ = run(session, [y, updates], {given: x})
        state = {one.op.name.split("/")[-1]: session.run(one) for one in v1.global_variables()}
    return y, state


def expected_step(x, **options):
    state = {"moving_mean": np.zeros(4), "moving_variance": np.ones(4)}
    if options.get("renorm"):
        state |= {"moving_stddev": np.ones(4), "renorm_mean": np.zeros(4)}
        state["renorm_stddev"] = np.ones(4)
    if options.get("zero_debias"):
        state |= {"biased_mean": np.zeros(4), "local_step": np.zeros(4)}
    result = reference(x, {"beta": np.zeros(4)}, state, training=True, **options)
    return result.y, result.state


PAIRS = [
    ({"batch_weights": WEIGHTS, "renorm": True, "renorm_decay": 0.8},
     {"batch_weights": WEIGHTS, "renorm": True, "renorm_momentum": 0.8}),
    ({"updates_collections": None, "renorm": True}, {"renorm": True, "renorm_momentum": 0.99}),
    ({"zero_debias_moving_mean": True, "renorm": True},
     {"zero_debias": True, "renorm": True, "renorm_momentum": 0.99}),
    ({"updates_collections": None, "adjustment": lambda shape: (np.full(4, 2.0), np.ones(4))},
     {"adjustment": lambda shape: (np.full(4, 2.0), np.ones(4))}),
    ({"batch_weights": WEIGHTS, "adjustment": lambda shape: (np.full(4, 2.0), np.ones(4))},
     {"batch_weights": WEIGHTS, "adjustment": lambda shape: (np.full(4, 2.0), np.ones(4))}),
    ({"batch_weights": WEIGHTS, "zero_debias_moving_mean": True, "updates_collections": None},
     {"batch_weights": WEIGHTS, "zero_debias": True}),
]  # fmt: skip


@pytest.mark.parametrize(("options", "theirs"), PAIRS, ids=lambda one: "+".join(one))
def test_options_that_the_original_kept_apart_work_together(options, theirs):
    """D21 among them: adjustment was dropped in place."""
    y, state = one_step({"decay": 0.9, "fused": None, **options})
    want, expected = expected_step(X, momentum=0.9, epsilon=1e-3, **theirs)
    np.testing.assert_allclose(y, want, rtol=2e-5, atol=2e-5)
    for name, value in expected.items():
        mine = state["biased" if name == "biased_mean" else name]
        np.testing.assert_allclose(mine, value if mine.ndim else value[0], rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize("options", [{}, {"updates_collections": None}, {"fused": False},
                                     {"batch_weights": WEIGHTS},
                                     {"zero_debias_moving_mean": True}], ids=str)  # fmt: skip
@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_every_path_takes_every_type(options, dtype):
    """D22 and D23: float16 overflowed on one path, float64 raised on another."""
    x = (X * 100).astype(dtype)
    y, state = one_step({"decay": 0.0, **options}, x)
    assert y.dtype == x.dtype
    assert state["moving_mean"].dtype == np.dtype("float64" if dtype == "float64" else "float32")
    weights = options.get("batch_weights")
    mean = np.average(x.astype("float64"), 0, weights).mean((0, 1))
    np.testing.assert_allclose(state["moving_mean"], mean, rtol=1e-4, atol=1e-2)
    assert np.isfinite(y).all()


@pytest.mark.parametrize("options", [{}, {"updates_collections": None}, {"fused": False},
                                     {"fused": False, "updates_collections": None},
                                     {"batch_weights": WEIGHTS}], ids=str)  # fmt: skip
def test_regularizers_are_applied_on_every_path(session, options):
    """D20: one path dropped them."""
    contrib(
        placeholder(*X.shape),
        scale=True,
        param_regularizers={"beta": tf.reduce_sum, "gamma": lambda gamma: None},
        **options,
    )
    losses = v1.get_collection(v1.GraphKeys.REGULARIZATION_LOSSES)
    assert [one.op.name for one in losses] == ["BatchNorm/beta/Regularizer/Sum"]


def test_a_string_is_one_collection(session):
    """D26: the original made collections of its characters."""
    y = contrib(placeholder(*X.shape), variables_collections="mine", outputs_collections="ys")
    found = [one.op.name for one in v1.get_collection("mine")]
    assert found == ["BatchNorm/beta", "BatchNorm/moving_mean", "BatchNorm/moving_variance"]
    assert [one.name for one in v1.get_collection("ys")] == [y.name]
    assert v1.get_collection("m") == []


def test_variables_go_to_the_collections_of_their_names(session):
    collections = {"beta": "betas", "moving_mean": ["means", "all"], "unknown": ["nothing"]}
    contrib(placeholder(*X.shape), variables_collections=collections, renorm=True)
    for name, kept in (("betas", ["beta"]), ("means", ["moving_mean"]), ("nothing", [])):
        assert [one.op.name.split("/")[-1] for one in v1.get_collection(name)] == kept


@pytest.mark.parametrize("fused", [None, False])
def test_the_state_of_zero_debias_is_among_the_models_variables(session, fused):
    """D28: it was on one path only."""
    contrib(placeholder(*X.shape), zero_debias_moving_mean=True, fused=fused, scope="bn")
    found = [one.op.name for one in v1.get_collection(v1.GraphKeys.MODEL_VARIABLES)]
    assert found == ["bn/beta", "bn/moving_mean", "bn/moving_variance",
                     "bn/bn/moving_mean/biased", "bn/bn/moving_mean/local_step"]  # fmt: skip


def test_two_applications_share_the_state_of_zero_debias(session):
    options = {"zero_debias_moving_mean": True, "scope": "bn", "decay": 0.5}
    x = placeholder(*X.shape)
    contrib(x, is_training=False, **options)
    for _ in range(2):
        contrib(x, reuse=True, **options)
    assert len(v1.global_variables()) == 5
    run(session, v1.get_collection(v1.GraphKeys.UPDATE_OPS), {x: X})
    values = {one.op.name: session.run(one) for one in v1.global_variables()}
    assert values["bn/bn/moving_mean/local_step"] == 2
    np.testing.assert_allclose(values["bn/moving_mean"], X.mean((0, 1, 2)), rtol=1e-5)


@pytest.mark.parametrize("weights", [np.zeros(6, "float32"), [0] * 6], ids=["floats", "integers"])
@pytest.mark.parametrize("fused", [None, False])
def test_weights_of_zero_leave_the_statistics_and_use_the_moving_ones(weights, fused):
    """D29: NaN, or statistics that shrink, in the original."""
    y, state = one_step({"batch_weights": weights, "fused": fused, "decay": 0.5})
    np.testing.assert_allclose(y, X / np.sqrt(1.001), rtol=1e-5)
    np.testing.assert_array_equal(state["moving_mean"], np.zeros(4))
    np.testing.assert_array_equal(state["moving_variance"], np.ones(4))


@pytest.mark.parametrize("fused", [None, False])
def test_a_sample_without_weight_may_be_nan(fused):
    x = X.copy()
    x[2] = np.nan  # its weight is 0
    _, state = one_step({"batch_weights": WEIGHTS, "decay": 0.0, "fused": fused}, x)
    want = np.average(np.delete(X, 2, 0), 0, np.delete(WEIGHTS, 2)).mean((0, 1))
    np.testing.assert_allclose(state["moving_mean"], want, rtol=1e-5)


def test_weights_are_not_asked_for_in_inference(session):
    x, weights = placeholder(*X.shape), placeholder(None)
    y = contrib(x, batch_weights=weights, is_training=False)
    run(session, y, {x: X})


@pytest.mark.parametrize("activation", [tf.nn.relu, v1.nn.relu])
@pytest.mark.parametrize("training", [True, False])
def test_relu_runs_inside_the_kernel(session, activation, training):
    x = placeholder(*X.shape)
    y = contrib(x, activation_fn=activation, is_training=training, scope="bn")
    plain = contrib(x, is_training=training, scope="bn", reuse=True)
    slopes = [tf.gradients(tf.square(one), x)[0] for one in (y, tf.maximum(plain, 0))]
    # in inference TensorFlow's own operations do it, which run wherever the graph goes
    assert ("Relu" in {one.type for one in session.graph.get_operations()}) is not training
    assert y.op.name == "bn/Relu"
    got, want, *slopes = run(session, [y, tf.maximum(plain, 0), *slopes], {x: X})
    np.testing.assert_allclose(got, want, atol=1e-6)
    np.testing.assert_allclose(*slopes, atol=1e-4)


def test_another_activation_is_called_on_the_output(session):
    outputs = []
    y = contrib(
        placeholder(*X.shape),
        activation_fn=lambda one: outputs.append(one) or tf.nn.tanh(one),
        outputs_collections=["ys"],
    )
    assert outputs[0].op.name == "BatchNorm/FusedBatchNormV3"
    assert v1.get_collection("ys")[0] is y
    assert y.op.type == "Tanh"
    assert y.aliases == ["BatchNorm"]


def test_is_training_may_be_a_variable(session):
    training = v1.get_variable("training", initializer=True)
    x = placeholder(*X.shape)
    y = contrib(x, is_training=training)
    trained = run(session, y, {x: X})
    session.run(training.assign(False))
    np.testing.assert_allclose(trained.mean((0, 1, 2)), 0, atol=1e-5)
    np.testing.assert_allclose(session.run(y, {x: X}), X / np.sqrt(1.001), rtol=1e-5)


@pytest.mark.parametrize("is_training", [0, 1, np.True_, np.False_], ids=repr)
def test_is_training_may_be_a_plain_number(session, is_training):
    contrib(placeholder(*X.shape), is_training=is_training)
    assert len(v1.get_collection(v1.GraphKeys.UPDATE_OPS)) == (2 if is_training else 0)


@pytest.mark.parametrize(
    ("shape", "options", "unbiased"),
    [
        ((6, 3, 2, 4), {}, True),
        ((6, 3, 2, 4), {"updates_collections": None}, True),
        ((6, 4), {}, True),
        ((6, 4), {"data_format": "NCHW"}, True),
        ((6, 3, 4), {}, False),
        ((6, 3, 2, 2, 4), {}, True),
        ((6, 3, 2, 2, 4), {"updates_collections": None}, False),
        ((6, 3, 2, 4), {"fused": False}, False),
        ((6, 3, 2, 4), {"renorm": True}, False),
        ((6, 3, 2, 4), {"batch_weights": [1.0] * 6}, False),
        ((6, 3, 2, 4), {"zero_debias_moving_mean": True}, True),
    ],
    ids=str,
)
def test_the_moving_variance_is_what_the_original_stored(shape, options, unbiased):
    """D15."""
    x = RNG.normal(1.0, 2.0, shape).astype("float32")
    _, state = one_step({"decay": 0.0, **options}, x)
    want = x.var(tuple(range(len(shape) - 1)), ddof=1 if unbiased else 0)
    np.testing.assert_allclose(state["moving_variance"], want, rtol=1e-4)


def test_arg_scope_of_tf_slim_sets_arguments(session):
    slim = tf1_originals.slim()
    from tf_slim.ops.arg_scope import arg_scope

    assert slim.batch_norm is not contrib
    with arg_scope([contrib], scale=True, updates_collections="mine"):
        contrib(placeholder(*X.shape), scope="bn")
    assert [one.op.name for one in v1.trainable_variables()] == ["bn/beta", "bn/gamma"]
    assert len(v1.get_collection("mine")) == 2


@pytest.mark.filterwarnings("ignore:.*layer.apply:UserWarning")
def test_it_is_a_normalizer_of_tf_slims_layers(session):
    slim = tf1_originals.slim()
    x = placeholder(*X.shape)
    params = {"scale": True, "is_training": True}
    y = slim.convolution(x, 5, [3, 3], normalizer_fn=contrib, normalizer_params=params)
    found = [one.op.name for one in v1.global_variables()]
    assert found == ["Conv/weights", "Conv/BatchNorm/gamma", "Conv/BatchNorm/beta",
                     "Conv/BatchNorm/moving_mean", "Conv/BatchNorm/moving_variance"]  # fmt: skip
    assert run(session, y, {x: X}).shape == (6, 3, 2, 5)


def test_a_custom_getter_of_the_scope_is_asked(session):
    asked = []

    def asking(getter, name, *args, **kwargs):
        asked.append(name)
        return getter(name, *args, **kwargs)

    with v1.variable_scope("net", custom_getter=asking):
        contrib(placeholder(*X.shape))
    assert asked == [f"net/BatchNorm/{name}" for name in ("beta", "moving_mean", "moving_variance")]


def test_an_average_of_variables_can_be_served_by_a_custom_getter(session):
    average = tf.train.ExponentialMovingAverage(0.5)
    x = placeholder(*X.shape)
    contrib(x, scope="bn")
    average.apply(v1.global_variables())
    served = v1.variable_scope(
        v1.get_variable_scope(),
        custom_getter=lambda getter, name, *a, **kw: average.average(getter(name, *a, **kw)),
    )
    with served:
        y = contrib(x, scope="bn", reuse=True, is_training=False)
    np.testing.assert_allclose(run(session, y, {x: X}), X / np.sqrt(1.001), rtol=1e-5)

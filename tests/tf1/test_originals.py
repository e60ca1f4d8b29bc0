"""Live against the originals in one process, on random options and values."""

from __future__ import annotations

import hypothesis.strategies as st
import numpy as np
import tensorflow as tf
from hypothesis import HealthCheck, given, settings

import tf1_originals
from batchnorm import tf1

v1 = tf.compat.v1
STEPS = 2
TOLERANCES = {"float32": 5e-5, "float64": 1e-7}
SHAPES = [(6, 5), (6, 4, 3), (6, 3, 2, 4), (4, 3, 2, 1, 5)]
COLLECTIONS = ["update_ops", "mine", "variables", "trainable_variables", "model_variables", "kept",
               "regularization_losses", "moving_average_variables", "local_variables"]  # fmt: skip

thorough = settings(
    max_examples=40, deadline=None, derandomize=True, report_multiple_bugs=False,
    suppress_health_check=[HealthCheck.too_slow],
)  # fmt: skip


def penalty(weights):
    return 0.1 * tf.reduce_sum(tf.square(weights))


@st.composite
def common(draw):
    """What both surfaces have: shape, how training is given, and a seed."""
    return {
        "shape": draw(st.sampled_from(SHAPES)),
        "dtype": draw(st.sampled_from(["float32", "float32", "float64"])),
        "unknown": draw(st.sampled_from([0, 0, 1, 2])),  # sizes that the graph leaves open
        "training": draw(st.sampled_from([True, True, False, "placeholder"])),
        "fed": draw(st.lists(st.booleans(), min_size=STEPS, max_size=STEPS)),
        "twice": draw(st.booleans()),
        "seed": draw(st.integers(0, 2**32 - 1)),
    }


def renorm_options(draw, momentum):
    clipping = {"rmax": 1.2, "rmin": 0.8, "dmax": 0.3}
    kept = draw(st.sets(st.sampled_from(sorted(clipping))))
    return {
        "renorm": True,
        "renorm_clipping": {name: clipping[name] for name in sorted(kept)},
        momentum: draw(st.sampled_from([0.0, 0.7, 1.0])),
    }


@st.composite
def layers_cases(draw):
    case = draw(common())
    rank = len(case["shape"])
    axis = draw(st.integers(-rank, rank - 1))
    if draw(st.booleans()):
        axis = draw(st.lists(st.integers(0, rank - 1), min_size=1, max_size=3, unique=True))
    options = {
        "axis": axis,
        "momentum": draw(st.sampled_from([0.0, 0.5, 0.99])),
        "epsilon": draw(st.sampled_from([1e-5, 1e-3, 0.3])),
        "center": draw(st.booleans()),
        "scale": draw(st.booleans()),
        "trainable": draw(st.sampled_from([True, True, False])),
        "fused": draw(st.sampled_from([None, True, False])),
        "gamma_regularizer": draw(st.sampled_from([None, penalty])),
    }
    mode = draw(st.sampled_from(["plain", "plain", "renorm", "ghost", "adjustment"]))
    given_axes = axis if isinstance(axis, list) else [axis]
    case["unknown"] = 0 if 0 in [one % rank for one in given_axes] else case["unknown"]
    case["unknown"] = (
        min(case["unknown"], 1) if len(given_axes) > 1 or axis != -1 else case["unknown"]
    )
    if mode == "renorm" or (mode == "adjustment" and draw(st.booleans())):
        options |= renorm_options(draw, "renorm_momentum")
    if mode == "ghost" and 0 not in [one % rank for one in given_axes]:
        # with a tensor for `training` the original forms no groups (D02)
        case["training"] = case["training"] != "placeholder" and case["training"]
        options["virtual_batch_size"] = draw(st.sampled_from([1, 2, case["shape"][0]]))
    if mode == "adjustment":
        options["adjustment"] = "of the seed"
    if options.get("renorm"):  # fails in float64
        case["dtype"] = "float32"
    return case | {"options": options, "flag": "training", "name": "name"}


@st.composite
def contrib_cases(draw):
    case = draw(common())
    options = {
        "decay": draw(st.sampled_from([0.0, 0.5, 0.99])),
        "epsilon": draw(st.sampled_from([1e-5, 1e-3, 0.3])),
        "center": draw(st.booleans()),
        "scale": draw(st.booleans()),
        "trainable": True,  # False is D25
        "fused": draw(st.sampled_from([None, True, False])),
        "data_format": draw(st.sampled_from(["NHWC", "NCHW"])),
        "activation_fn": draw(st.sampled_from([None, tf.nn.relu, tf.nn.tanh])),
        "variables_collections": draw(st.sampled_from([None, ["kept"], {"beta": ["kept"]}])),
        "outputs_collections": draw(st.sampled_from([None, "kept"])),
        "updates_collections": draw(st.sampled_from(["update_ops", "update_ops", "mine", None])),
    }
    mode = draw(st.sampled_from(["plain", "plain", "renorm", "weights", "debias"]))
    # the same object as the default, or the original takes another path (D24)
    if options["updates_collections"] == "update_ops":
        options["updates_collections"] = v1.GraphKeys.UPDATE_OPS
        if mode == "renorm":
            options |= renorm_options(draw, "renorm_decay")
            case["dtype"] = "float32"  # float64 fails
    if mode == "debias":
        options["zero_debias_moving_mean"] = True
        options["decay"] = max(options["decay"], 0.5)
    if mode == "weights":
        options["batch_weights"] = "of the seed"
    plain = options["updates_collections"] == "update_ops" and mode in ("plain", "renorm")
    if case["dtype"] == "float64" and not (plain and len(case["shape"]) > 2):
        options["fused"] = False  # D23
    case["twice"] = case["twice"] and options["updates_collections"] is not None
    case["unknown"] = min(case["unknown"], 1)
    return case | {"options": options, "flag": "is_training", "name": "scope"}


class Side:
    """One graph with the function in it: ours, or the original."""

    def __init__(self, function, case):
        self.case = case
        self.graph = tf.Graph()
        with self.graph.as_default():
            self._build(function)

    def _build(self, function):
        case, shape = self.case, list(self.case["shape"])
        rng = np.random.default_rng(case["seed"])
        options = dict(case["options"])
        if "adjustment" in options:
            pair = rng.uniform(0.5, 1.5, (2, *shape)).astype(case["dtype"])
            options["adjustment"] = lambda _: tuple(tf.constant(one) for one in pair)
        if "batch_weights" in options:
            options["batch_weights"] = rng.uniform(0.2, 3.0, shape[0]).astype(case["dtype"])
        static = [None if i < case["unknown"] else size for i, size in enumerate(shape)]
        self.x = v1.placeholder(case["dtype"], static)
        self.g = v1.placeholder(case["dtype"], shape)
        training = case["training"]
        if training == "placeholder":
            training = self.training = v1.placeholder(tf.bool, ())
        given = {case["name"]: "net/bn", case["flag"]: training}
        self.y = function(self.x, **given, **options)
        if case["twice"]:  # in inference: what two updates in one step do is D32
            function(self.x, **{**given, case["flag"]: False}, reuse=True, **options)
        self.variables = v1.global_variables()
        wanted = [self.x, *v1.trainable_variables()]
        slopes = v1.gradients(tf.reduce_sum(self.y * self.g), wanted)
        self.slopes = [one for one in slopes if one is not None]
        self.collections = {name: v1.get_collection(name) for name in COLLECTIONS}
        self.updates = self.collections["update_ops"] + self.collections["mine"]

    def run(self, state, batches):
        """Outputs, gradients and the state after each step."""
        seen = []
        with v1.Session(graph=self.graph) as session:
            for variable in self.variables:
                given = variable.initializer.inputs[1]
                session.run(variable.initializer, {given: state[variable.op.name]})
            for (x, g), fed in zip(batches, self.case["fed"], strict=True):
                feed = {self.x: x, self.g: g}
                if self.case["training"] == "placeholder":
                    feed[self.training] = fed
                y, slopes, _ = session.run([self.y, self.slopes, self.updates], feed)
                seen.append([y, *slopes, *session.run(self.variables)])
        return seen


def names(collection):
    """Variables and losses by name, update ops and outputs by their number and kind of name."""
    return [
        getattr(one, "op", one).name.removesuffix("_1").removesuffix("/AssignSubVariableOp")
        for one in collection
    ]


def random_state(side):
    rng = np.random.default_rng(side.case["seed"] + 1)
    state = {}
    for one in side.variables:
        shape, name = one.shape.as_list(), one.op.name
        positive = name.endswith(("variance", "stddev"))
        state[name] = rng.uniform(0.5, 2, shape) if positive else rng.normal(size=shape)
        if name.endswith("local_step"):
            state[name] = np.float64(3)
    for name in state:
        if name.endswith("moving_variance") and f"{name[:-8]}stddev" in state:
            state[name] = np.square(state[f"{name[:-8]}stddev"])  # another one is D18
    return state


def assert_equal_to_the_original(function, original, case):
    ours, theirs = Side(function, case), Side(original, case)
    described = [
        [(one.op.name, one.shape.as_list(), one.dtype) for one in side.variables]
        for side in (ours, theirs)
    ]
    assert described[0] == described[1]
    debiased = case["options"].get("zero_debias_moving_mean")
    for name in COLLECTIONS:
        if name == "model_variables" and debiased:
            continue  # whether its variables are there depended on the path (D28)
        mine, other = ours.collections[name], theirs.collections[name]
        assert len(mine) == len(other), name
        if name not in ("update_ops", "mine", "kept"):
            assert names(mine) == names(other), name
    if case["training"] != "placeholder":
        if not (case["options"].get("renorm") and theirs.y.op.type == "Relu"):
            assert ours.y.name == theirs.y.name  # the original's renorm has another Relu before
        for name in ("update_ops", "mine"):
            assert names(ours.collections[name]) == names(theirs.collections[name])
    assert ours.y.dtype == theirs.y.dtype
    rng = np.random.default_rng(case["seed"] + 2)
    batches = [
        (rng.normal(1.0, 2.0, case["shape"]), rng.normal(size=case["shape"])) for _ in range(STEPS)
    ]
    state, tolerance = random_state(ours), TOLERANCES[case["dtype"]]
    for step, (got, want) in enumerate(
        zip(ours.run(state, batches), theirs.run(state, batches), strict=True)
    ):
        for i, (one, other) in enumerate(zip(got, want, strict=True)):
            np.testing.assert_allclose(
                one, other, rtol=tolerance, atol=tolerance, err_msg=f"step {step}, value {i}"
            )


@thorough
@given(case=layers_cases())
def test_random_calls_of_layers_equal_the_original(case):
    assert_equal_to_the_original(
        tf1.layers.batch_normalization, tf1_originals.batch_normalization, case
    )


@thorough
@given(case=contrib_cases())
def test_random_calls_of_contrib_equal_the_original(case):
    assert_equal_to_the_original(tf1.contrib.layers.batch_norm, tf1_originals.batch_norm, case)


def test_the_arguments_have_the_names_positions_and_defaults_of_the_original():
    import inspect

    pairs = [
        (tf1.layers.batch_normalization, tf1_originals.layers().batch_normalization),
        (
            tf1.layers.BatchNormalization.__init__,
            tf1_originals.layers().BatchNormalization.__init__,
        ),
        (tf1.contrib.layers.batch_norm, tf1_originals.slim().batch_norm),
    ]
    for mine, theirs in pairs:
        described = [
            [
                (one.name, type(one.default) if callable(one.default) else one.default)
                for one in inspect.signature(function).parameters.values()
                if one.kind != one.VAR_KEYWORD
            ]
            for function in (mine, theirs)
        ]
        assert described[0] == described[1]

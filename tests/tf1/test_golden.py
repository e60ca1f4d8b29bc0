"""The recordings of `tf.layers` and `tf.contrib` replay through ours (see golden/README.md)."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf

from batchnorm import tf1
from recordings import golden_arrays, golden_cases

v1 = tf.compat.v1
FUNCTIONS = {
    "layers_v1": tf1.layers.batch_normalization,
    "contrib": tf1.contrib.layers.batch_norm,
}
CASES = [case for case in golden_cases(*FUNCTIONS) if case["defect"] is None]
TOLERANCES = {"float16": 2e-2, "bfloat16": 2e-2, "float64": 1e-7}
GRADIENTS = {"dx": None, "dgamma": "gamma", "dbeta": "beta"}

each_case = pytest.mark.parametrize("case", CASES, ids=lambda case: case["name"])


class Replay:
    """A graph with the recorded layer in it, and a session.

    As it was recorded: a case whose `training` is not a placeholder is trained and inferred by two
    applications that share variables.
    """

    def __init__(self, case):
        self.case = case
        self.graph = tf.Graph()
        with self.graph.as_default():
            self._build()
        self.session = v1.Session(graph=self.graph)
        self.session.run(self.initialize)
        for name, value in golden_arrays(case).items():
            if name in ("gamma", "beta"):
                self.assign(name, value)
            elif name.startswith("state/"):
                self.assign(name.removeprefix("state/"), value[0])

    def _build(self):
        case, arrays = self.case, golden_arrays(self.case)
        dtype = case["dtype"] or "float32"
        self.x, self.g = (v1.placeholder(dtype, case["shape"]) for _ in range(2))
        self.feed = {}
        kw = dict(case["kw"])
        if kw.get("activation_fn") == "relu":
            kw["activation_fn"] = tf.nn.relu
        if "adj_scale" in arrays:
            kw["adjustment"] = lambda _: (arrays["adj_scale"], arrays["adj_bias"])
        if "batch_weights" in arrays:
            kw["batch_weights"] = arrays["batch_weights"]
        training = case["training"]
        if training == "placeholder":
            training = self.dynamic = v1.placeholder(tf.bool, ())
        self.train = self.application(training, kw)
        self.variables = v1.global_variables()
        self.trainable = v1.trainable_variables()
        self.updates = v1.get_collection(kw.get("updates_collections") or v1.GraphKeys.UPDATE_OPS)
        if case["training"] == "placeholder":
            self.infer = self.train
        else:
            self.infer = self.application(False, {**kw, "reuse": True})
        self.values = {one.op.name.split("/")[-1]: one for one in self.variables}
        self.inputs = {name: v1.placeholder(one.dtype) for name, one in self.values.items()}
        self.assigning = {
            name: v1.assign(one, tf.reshape(self.inputs[name], one.shape))
            for name, one in self.values.items()
        }
        self.initialize = v1.global_variables_initializer()

    def application(self, training, kw):
        name = {"layers_v1": ("name", "training"), "contrib": ("scope", "is_training")}
        scope, flag = name[self.case["surface"]]
        y = FUNCTIONS[self.case["surface"]](self.x, **kw, **{scope: "bn", flag: training})
        known = {one.op.name.split("/")[-1]: one for one in v1.global_variables()}
        wanted = {"dx": self.x} | {
            theirs: known[mine] for theirs, mine in GRADIENTS.items() if mine in known
        }
        slopes = v1.gradients(tf.reduce_sum(y * self.g), list(wanted.values()))
        return {"y": y, **dict(zip(wanted, slopes, strict=True))}

    def assign(self, name, value):
        self.session.run(self.assigning[name], {self.inputs[name]: value})

    def run(self, application, x, g, training):
        feed = {self.x: x, self.g: g}
        if self.case["training"] == "placeholder":
            feed[self.dynamic] = training
        results, _ = self.session.run([application, self.updates if training else []], feed)
        return {name: np.asarray(value, np.float64) for name, value in results.items()}

    def state(self):
        return self.session.run(self.values)


@pytest.fixture
def replay(case):
    replay = Replay(case)
    yield replay
    replay.session.close()


def assert_recorded(case, what, got, recorded):
    tolerance = TOLERANCES.get(case["dtype"], 5e-5)
    np.testing.assert_allclose(
        got, recorded, rtol=tolerance, atol=tolerance, err_msg=f"{case['name']}: {what}"
    )


def assert_recorded_step(case, got, recorded, index):
    for name, value in got.items():
        if name in recorded:
            assert_recorded(case, name, value, recorded[name][index])


def test_the_recordings_are_there():
    assert {case["surface"] for case in CASES} == set(FUNCTIONS)
    assert len(CASES) >= 35


@each_case
def test_variables_and_updates_are_those_recorded(case, replay):
    kept = [
        [one.op.name, one.shape.as_list(), one.dtype.base_dtype.name,
         any(one is other for other in replay.trainable)]
        for one in replay.variables
    ]  # fmt: skip
    assert kept == case["variables"]
    assert len(replay.updates) == case["n_update_ops"]


@each_case
def test_training_steps_and_inference_replay(case, replay):
    recorded = golden_arrays(case)
    for index in range(case["steps"]):
        got = replay.run(replay.train, recorded["x"][index], recorded["g"][index], True)
        assert_recorded_step(case, got, recorded, index)
        state = replay.state()
        for name, value in recorded.items():
            if name.startswith("state/"):
                name = name.removeprefix("state/")
                assert_recorded(case, name, state[name], value[index + 1])
    inference = {
        name.removeprefix("infer_"): value[None]
        for name, value in recorded.items()
        if name.startswith("infer_")
    }
    got = replay.run(replay.infer, inference["x"][0], inference["g"][0], False)
    assert_recorded_step(case, got, inference, 0)
    after = replay.state()
    assert all(np.array_equal(after[name], state[name]) for name in state)

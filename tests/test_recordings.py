"""The reference model against the recorded originals."""

from __future__ import annotations

import numpy as np
import pytest

from recordings import golden_arrays, golden_cases, golden_state, resolve_golden
from reference import batch_norm

# D35: the originals round 1 - momentum to float32, for float64 layers too.
TOLERANCE = {"float64": 1e-7, "float16": 2e-2, "bfloat16": 2e-2}
OUTSIDE = ("two_replicas",)  # more than one call of the function makes these


def recorded(*surfaces):
    cases = [
        case
        for case in golden_cases(*surfaces)
        if not case["defect"] and case["mode"] not in OUTSIDE and "activation_fn" not in case["kw"]
    ]
    return pytest.mark.parametrize("case", cases, ids=[case["name"] for case in cases])


def assert_recorded(got, expected, case):
    tolerance = TOLERANCE.get(case["dtype"] or "float32", 2e-5)
    np.testing.assert_allclose(
        np.reshape(got, expected.shape), expected, rtol=tolerance, atol=tolerance
    )


def assert_result_is_recorded(result, arrays, case, prefix, step):
    expected = {name: arrays[prefix + name][step] for name in ("y", "dx")}
    assert_recorded(result.y, expected["y"], case)
    assert_recorded(result.dx, expected["dx"], case)
    for name, gradient in result.gradients.items():
        assert_recorded(gradient, arrays[f"{prefix}d{name}"][step], case)


@recorded("keras_v2", "keras_v1", "keras_sync", "layers_v1", "contrib")
def test_training_equals_the_recorded_original(case):
    options, parameters, state = resolve_golden(case)
    arrays = golden_arrays(case)
    for step in range(case["steps"]):
        x, g = arrays["x"][step], arrays["g"][step]
        result = batch_norm(x, parameters, state, dy=g, **options)
        assert_result_is_recorded(result, arrays, case, "", step)
        state = result.state
        for name, expected in golden_state(case, step + 1).items():
            assert_recorded(state[name], expected, case)


@recorded("keras_v2", "keras_v1", "keras_sync", "layers_v1", "contrib")
def test_inference_equals_the_recorded_original(case):
    options, parameters, _ = resolve_golden(case)
    options.update(training=False, statistics="auto")
    arrays = {name: value[None] for name, value in golden_arrays(case).items()}
    state = golden_state(case, case["steps"])
    x, g = arrays["infer_x"][0], arrays["infer_g"][0]
    result = batch_norm(x, parameters, state, dy=g, **options)
    assert_result_is_recorded(result, arrays, case, "infer_", 0)

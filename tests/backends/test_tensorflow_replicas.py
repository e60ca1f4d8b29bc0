"""One batch over replicas of TensorFlow: MirroredStrategy on logical CPUs."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import tensorflow as tf

import batchnorm
import launcher
import recordings
import replicated

both_paths = pytest.mark.parametrize("fused", [False, None], ids=["composite", "fused"])
each_mode = pytest.mark.parametrize("name", replicated.NAMES)
two_replicas = pytest.mark.parametrize("mirrored", [2], indirect=True, scope="module")


@pytest.fixture(scope="module", params=(2, 4))
def mirrored(request: Any, tmp_path_factory: pytest.TempPathFactory) -> tuple[int, dict[str, Any]]:
    """How many replicas, and what they found."""
    folder = tmp_path_factory.mktemp(f"tensorflow{request.param}")
    (found,) = launcher.launch("tensorflow_replicas", request.param, folder, processes=1)
    return request.param, found


@both_paths
@each_mode
def test_replicas_equal_one_with_all_the_rows(
    mirrored: tuple[int, dict[str, Any]], name: str, fused: bool | None
) -> None:
    count, found = mirrored
    replicated.check(replicated.case(name, count), found["modes"][name, fused][0])


@both_paths
@each_mode
def test_a_layer_sends_one_message_forward_and_one_backward_as_documented(
    mirrored: tuple[int, dict[str, Any]], name: str, fused: bool | None
) -> None:
    count, found = mirrored
    case = replicated.case(name, count)
    width = replicated.width(case)
    rows = (count, 1)  # gathering is a sum with a row for each replica
    each = [
        (f"float{8 * width}", of * size * width)
        for of, size in zip(rows, replicated.messages_of(case), strict=False)
    ]
    if "virtual_batch_size" in case.options:
        each.append(("int32", 4 * count))  # how many groups there are
    assert sorted(found["modes"][name, fused][1]) == sorted(each * count)


@both_paths
@pytest.mark.parametrize("name", ["mean 1e4", "ghost, renorm and weights", "unequal ghost"])
def test_a_graph_does_the_same(
    mirrored: tuple[int, dict[str, Any]], name: str, fused: bool | None
) -> None:
    count, found = mirrored
    replicated.check(replicated.case(name, count), found["graph"][name, fused])


@both_paths
def test_second_derivatives_are_those_of_one_process(
    mirrored: tuple[int, dict[str, Any]], fused: bool | None
) -> None:
    count, found = mirrored
    case = replicated.case("channels last", count)
    x = tf.constant(case.x, tf.float64)
    parameters = {name: tf.constant(array, tf.float64) for name, array in case.parameters.items()}
    _, state = batchnorm.init(x)
    with tf.GradientTape() as outer:
        outer.watch(x)
        with tf.GradientTape() as inner:
            inner.watch(x)
            y, _ = batchnorm.batch_norm(x, parameters, state, training=True, fused=False)
            loss = tf.reduce_sum(y**2 * case.dy)
        penalty = tf.reduce_sum(inner.gradient(loss, x) ** 2)
    wanted = outer.gradient(penalty, x).numpy()
    got = np.concatenate(found["second"][fused])
    np.testing.assert_allclose(got, wanted, rtol=1e-10, atol=1e-8)


@two_replicas
@pytest.mark.parametrize("name", ["sync_two_replicas", "k2_two_replicas_fused"])
def test_recordings_of_two_replicas_replay(mirrored: tuple[int, dict[str, Any]], name: str) -> None:
    """Without synchronization too: local statistics, of which whoever reads sees the mean."""
    _, found = mirrored
    (case,) = (
        one for one in recordings.golden_cases("keras_sync", "keras_v2") if one["name"] == name
    )
    recorded, got = recordings.golden_arrays(case), found["golden"][name]
    for what in ("y", "dx", "infer_y"):
        np.testing.assert_allclose(got[what], recorded[what], rtol=5e-5, atol=5e-5)
    for what in ("moving_mean", "moving_variance"):
        np.testing.assert_allclose(got[what], recorded[f"state/{what}"][1:], rtol=5e-5, atol=5e-5)


@two_replicas
def test_fit_under_a_strategy_is_fit_without_one(mirrored: tuple[int, dict[str, Any]]) -> None:
    _, found = mirrored
    for one, other in zip(*found["fit"], strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-5)


def test_a_name_is_refused() -> None:
    x = tf.ones((4, 3))
    parameters, state = batchnorm.init(x)
    with pytest.raises(TypeError) as caught:
        batchnorm.batch_norm(x, parameters, state, training=True, synchronized="batch")
    assert str(caught.value) == (
        "batch_norm: synchronized must be True or False on TensorFlow, which finds the "
        "tf.distribute strategy itself; got 'batch'."
    )

"""Verdicts come from the numbers, with their spread."""

import pytest

# Runs carry no tensors, but their module imports Keras.
pytestmark = pytest.mark.keras


@pytest.fixture
def judged():
    """Judges a claim from `{kind: [accuracies of each seed]}`."""
    from batchnorm.demo import claims
    from batchnorm.demo.plan import REGIMES
    from batchnorm.demo.training import Run

    def judge(claim: int, accuracies: dict[str, list[tuple[float, ...]]]) -> str:
        chosen = claims.CLAIMS[claim]
        regime = next(regime for regime in REGIMES if regime.name == chosen.regime)
        runs = [
            Run(regime, kind, seed, curve, (1.0,), fitted=0.99)
            for kind, curves in accuracies.items()
            for seed, curve in enumerate(curves)
        ]
        return str(claims.judge(chosen, runs))

    return judge


def test_a_clear_difference_is_seen(judged):
    said = judged(1, {"batch": [(0.90,), (0.91,), (0.92,)], "renorm": [(0.95,), (0.96,), (0.98,)]})
    assert said == (
        "Renormalization beats batch normalization at tiny batches (Ioffe 2017): seen here. "
        "5.3 ± 1.4 points more test accuracy at batches of 4, over 3 seeds."
    )


def test_a_difference_within_its_spread_is_not_seen(judged):
    said = judged(2, {"batch": [(0.90,), (0.95,)], "renorm": [(0.95,), (0.91,)]})
    assert said == (
        "Renormalization beats batch normalization where batches are not i.i.d. (Ioffe 2017): "
        "not seen here. 0.5 ± 57.2 points more test accuracy at two classes a batch, over 2 seeds."
    )


def test_a_clear_difference_the_other_way_is_called_the_opposite(judged):
    said = judged(5, {"batch": [(0.97,), (0.98,)], "ghost": [(0.91,), (0.92,)]})
    assert said == (
        "Ghost batches beat whole batches where batches are large (Hoffer, Hubara and Soudry "
        "2017): the opposite was seen here. 6.0 ± 0.0 points less test accuracy at batches of "
        "512, over 2 seeds."
    )


def test_steps_count_to_the_first_evaluation_at_the_target(judged):
    said = judged(0, {"none": [(0.1, 0.2, 0.95)] * 2, "batch": [(0.95, 0.9, 0.9)] * 2})
    assert said == (
        "Batch normalization needs fewer steps than no normalization (Ioffe and Szegedy 2015): "
        "seen here. 20 ± 0 steps fewer to 95 % at batches of 64, over 2 seeds."
    )


def test_a_run_that_never_got_there_is_said(judged):
    said = judged(0, {"none": [(0.1,), (0.95,)], "batch": [(0.95,), (0.95,)]})
    assert said.endswith("; 1 run never got there and counts with the last step.")


def test_one_seed_tells_nothing(judged):
    said = judged(0, {"none": [(0.1,)], "batch": [(0.95,)]})
    assert said.endswith(": cannot be told. A difference needs at least two seeds.")


def test_what_is_lost_between_training_and_evaluation_is_said_for_both(judged):
    said = judged(3, {"batch": [(0.60,), (0.70,)], "renorm": [(0.90,), (0.98,)]})
    assert said == (
        "Renormalization evaluates as it trained where a batch holds one class, and batch "
        "normalization fails (Ioffe 2017, section 4.3): seen here. 29.0 ± 12.7 points less lost "
        "from training to test at one class a batch, over 2 seeds. Lost on average: batch norm "
        "34.0, renorm 5.0."
    )
    said = judged(3, {"batch": [(0.90,), (0.98,)], "renorm": [(0.60,), (0.70,)]})
    assert "the opposite was seen here. 29.0 ± 12.7 points more lost" in said

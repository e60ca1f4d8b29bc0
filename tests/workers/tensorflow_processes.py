"""A process of `tests/backends/test_tensorflow_processes.py`: rank, replicas, folder, ports.

MultiWorkerMirroredStrategy over loopback. What it pickles: {"modes": {(name, fused): result},
"keras": weights after `fit`, "error": what was said to workers that disagree}.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

RANK, REPLICAS, FOLDER = int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3])
WORKERS = [f"localhost:{port}" for port in sys.argv[4:]]
os.environ["KERAS_BACKEND"] = "tensorflow"
os.environ["TF_CONFIG"] = json.dumps(
    {"cluster": {"worker": WORKERS}, "task": {"type": "worker", "index": RANK}}
)

import tensorflow as tf  # noqa: E402

import engines  # noqa: E402
import launcher  # noqa: E402
import replicated  # noqa: E402

ENGINE = engines.ENGINES["tensorflow"]
NAMES = ("plain", "mean 1e4", "mask, weights and axis 1", "ghost, renorm and weights", "bfloat16")


def modes(strategy: tf.distribute.Strategy) -> dict[Any, Any]:
    results: dict[Any, Any] = {}
    for name in NAMES:
        one = replicated.case(name, REPLICAS)
        for fused in (False, None):

            def replica() -> None:
                results[name, fused] = replicated.run(one, ENGINE, RANK, fused=fused)  # noqa: B023

            strategy.run(replica)
    return results


def disagreement(strategy: tf.distribute.Strategy) -> str:
    """What is said where one worker has three channels and the other four."""
    import batchnorm

    def replica() -> None:
        x = tf.ones((4, 3 + RANK % 2))
        parameters, state = batchnorm.init(x)
        batchnorm.batch_norm(x, parameters, state, training=True, synchronized=True)

    try:
        strategy.run(replica)
    except (tf.errors.OpError, ValueError) as error:
        return f"{type(error).__name__}: {error}"
    return "nothing"


def main() -> None:
    strategy = tf.distribute.MultiWorkerMirroredStrategy()
    found = {"modes": modes(strategy)}
    found["error"] = disagreement(strategy)  # last: it ends the strategy
    launcher.keep(FOLDER, RANK, found)
    launcher.wait(FOLDER, REPLICAS)  # its error may reach the other through this process
    os._exit(0)  # TensorFlow (2.21) waits for the other worker for minutes after an error


if __name__ == "__main__":
    main()

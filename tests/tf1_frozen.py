"""Runs frozen graphs where `batchnorm` cannot be imported, as a server would.

python frozen_graphs.py FOLDER      (with x.npy, and *.pb from `x` to `y`; it prints the outputs)
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

v1 = tf.compat.v1


def outputs_elsewhere(folder: Path) -> dict[str, Any]:
    """What the frozen graphs in a folder compute in such a process."""
    done = subprocess.run(
        [sys.executable, __file__, str(folder)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        check=True,
    )
    outputs: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return outputs


def main() -> None:
    sys.modules["batchnorm"] = None  # type: ignore[assignment]  # importing it raises
    folder = Path(sys.argv[1])
    x = np.load(folder / "x.npy")
    outputs = {}
    for path in sorted(folder.glob("*.pb")):
        frozen = v1.GraphDef.FromString(path.read_bytes())
        with tf.Graph().as_default(), v1.Session() as session:
            tf.import_graph_def(frozen, name="")
            outputs[path.stem] = session.run("y:0", {"x:0": x}).tolist()
    print(json.dumps(outputs))


if __name__ == "__main__":
    main()

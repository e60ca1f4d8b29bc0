"""The example trains, and evaluates from the checkpoint that it restores."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

EXAMPLE = Path(__file__).parents[2] / "examples" / "tf1_digits.py"


def test_the_example_learns_the_digits():
    done = subprocess.run(
        [sys.executable, str(EXAMPLE), "--steps", "200"], capture_output=True, text=True, check=True
    )
    accuracy = float(done.stdout.split(" steps, ")[1].split("%")[0])
    assert accuracy > 85

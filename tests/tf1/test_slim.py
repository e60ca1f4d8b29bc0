"""tf_slim 1.1.0's own tests of `batch_norm` pass on ours; today tf_slim passes 11 of the 66."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

SUITE = Path(__file__).with_name("slim_suite.py")


@pytest.mark.parametrize("variables", ["resources", "references"])
def test_all_66_tests_of_tf_slim_pass(variables):
    path = os.pathsep.join([str(SUITE.parents[1]), *sys.path])
    done = subprocess.run(
        [sys.executable, str(SUITE), variables],
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=True,
    )
    result = json.loads(done.stdout.splitlines()[-1])
    assert result == {"ran": 66, "failed": {}, "skipped": 0}

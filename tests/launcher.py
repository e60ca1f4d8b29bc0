"""Tests in several processes: `tests/workers/<worker>.py` on each replica, and what it found."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import batchnorm

TESTS = Path(__file__).parent
PACKAGE = Path(batchnorm.__file__).parent


def launch(
    worker: str,
    replicas: int,
    folder: Path,
    *arguments: Any,
    processes: int | None = None,
) -> list[Any]:
    """Runs `tests/workers/<worker>.py` as so many processes; what each of them pickled.

    Fails with what was printed where one fails, and ends the others.
    """
    started = start(worker, replicas, folder, *arguments, processes=processes)
    outputs = finish(started, timeout=240)
    failed = [text for process, text in zip(started, outputs, strict=True) if process.returncode]
    assert not failed, "\n".join(failed)
    return [pickle.loads((folder / f"{i}.pickle").read_bytes()) for i in range(len(started))]


def start(
    worker: str,
    replicas: int,
    folder: Path,
    *arguments: Any,
    processes: int | None = None,
    **environment: str,
) -> list[subprocess.Popen[str]]:
    """The processes, each with its rank, the number of replicas, and a folder as arguments.

    One for each replica, where `processes` does not say otherwise.
    """
    kept = {
        **os.environ,
        "PYTHONPATH": f"{PACKAGE.parent}{os.pathsep}{TESTS}",
        "OMP_NUM_THREADS": "1",
        "TF_CPP_MIN_LOG_LEVEL": "3",
        "GLOO_SOCKET_IFNAME": "lo",
        **environment,
    }
    script = str(TESTS / "workers" / f"{worker}.py")
    return [
        subprocess.Popen(
            [sys.executable, script, *map(str, (rank, replicas, folder, *arguments))],
            env=kept,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(replicas if processes is None else processes)
    ]


def finish(processes: list[subprocess.Popen[str]], timeout: float) -> list[str]:
    """What each printed, once all have ended; after `timeout` seconds they are ended."""
    outputs: list[str] = []
    try:
        outputs.extend(process.communicate(timeout=timeout)[0] for process in processes)
    except subprocess.TimeoutExpired as error:
        raise AssertionError(f"no end after {timeout} seconds: {error.output}") from error
    finally:
        for process in processes:
            process.kill()
            process.wait()
    return outputs


def keep(folder: Path, rank: int, result: Any) -> None:
    """What `launch` returns of a replica."""
    part = folder / f"{rank}.part"
    part.write_bytes(pickle.dumps(result))
    part.rename(part.with_suffix(".pickle"))


def wait(folder: Path, replicas: int, seconds: float = 60) -> None:
    """Until every replica has kept its result, so that none takes another's answers with it.

    Raises:
        TimeoutError: with the numbers of those that have not.
    """
    end = time.monotonic() + seconds
    while absent := [i for i in range(replicas) if not (folder / f"{i}.pickle").exists()]:
        if time.monotonic() > end:
            raise TimeoutError(f"No result of {absent} after {seconds} s.")
        time.sleep(0.05)

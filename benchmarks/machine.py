"""The processor and the versions that rows were measured on."""

from __future__ import annotations

import os
import platform
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path

BUSY = 0.3  # of the cores
PACKAGES = ("torch", "jax", "tensorflow", "keras", "tf_keras", "flax", "numpy")


def describe(load: float) -> dict[str, str]:
    """What every row of the CSV files carries; `load` as it was before the first measurement."""
    return {
        "date": datetime.now(UTC).date().isoformat(),
        "cpu": processor(),
        "cores": str(cores()),
        "load": f"{load:.2f}",
        "omp_num_threads": os.environ.get("OMP_NUM_THREADS", ""),
        **kernels(),
        "python": platform.python_version(),
        "versions": " ".join(
            f"{name} {version}" for name in PACKAGES if (version := _version(name)) is not None
        ),
    }


def cores() -> int:
    """Cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def load() -> float:
    """Processes that wanted a core in the last minute, on average; 0 where nobody counts them."""
    return os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0


def busy(load: float) -> str | None:
    """Sentence that says that others were at work, or None.

    A framework whose threads wait for each other stands still while one of them has no core, a
    hundred times as long as it computes.
    """
    if load <= BUSY * cores():
        return None
    return (
        f"Other programs were at work before the first measurement (load {load:.1f} on {cores()} "
        "cores): these times and ratios mean nothing. Run it again on a quiet machine."
    )


def kernels() -> dict[str, str]:
    """Instruction set and threads of our kernels, or that there are none."""
    import ctypes

    from batchnorm._native.library import KernelsUnavailable, load

    try:
        library = load()
    except KernelsUnavailable:
        return {"isa": "none: composite", "threads": ""}
    library.bn_isa.restype = ctypes.c_char_p
    return {"isa": library.bn_isa().decode(), "threads": str(library.bn_get_threads())}


def processor() -> str:
    """The processor's name, with the size of its last cache where the system tells."""
    name = platform.processor() or platform.machine()
    information = Path("/proc/cpuinfo")
    if information.exists():
        for line in information.read_text().splitlines():
            if line.startswith("model name"):
                name = line.partition(":")[2].strip()
                break
    cache = Path("/sys/devices/system/cpu/cpu0/cache/index3/size")
    return f"{name}, L3 {cache.read_text().strip()}" if cache.exists() else name


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None

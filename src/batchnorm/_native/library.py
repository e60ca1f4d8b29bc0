"""The kernels' shared library: found next to this file, loaded once, and held to its ABI."""

from __future__ import annotations

import ctypes
import functools
import json
import os
import sys
from importlib import metadata
from pathlib import Path
from urllib.parse import unquote, urlparse

from batchnorm._native.operands import KERNELS, OTHERS, prototype

ABI_VERSION = 3
HERE = Path(__file__).parent
MODES = ("auto", "never", "require")

# The codes of `enum bn_dtype`.
DTYPES = {"float32": 0, "float64": 1, "float16": 2, "bfloat16": 3}

_TYPES = {  # the letters of `operands.prototype`
    "i": ctypes.c_int,
    "n": ctypes.c_int64,
    "d": ctypes.c_double,
    "p": ctypes.c_void_p,
    "s": ctypes.POINTER(ctypes.c_int64),
}


class KernelsUnavailable(RuntimeError):
    """Why there are no native kernels here, in a sentence."""


def mode() -> str:
    """What the environment variable BATCHNORM_KERNELS asks for: auto, never or require.

    Raises:
        ValueError: it is set to anything else.
    """
    value = os.environ.get("BATCHNORM_KERNELS", "auto")
    if value not in MODES:
        raise ValueError(
            f"batchnorm: the environment variable BATCHNORM_KERNELS must be one of "
            f"{', '.join(MODES)}; got {value!r}."
        )
    return value


def path_of(stem: str) -> Path:
    """The file of a shared library of this package.

    Raises:
        KernelsUnavailable: it was not built.
    """
    suffix = {"darwin": ".dylib", "win32": ".dll"}.get(sys.platform, ".so")
    folders = folders_of_libraries()
    for folder in folders:
        if (path := folder / f"{stem}{suffix}").exists():
            return path
    if any((folder / "no_compiler.txt").exists() for folder in folders):
        raise KernelsUnavailable(
            "The native kernels were not built: there was no C++ compiler when batchnorm was "
            "installed. Install it again with one at hand."
        )
    raise KernelsUnavailable(
        f"The native kernels were not built ({path.name} is missing): building them failed, or was "
        "not asked for. `pip install -v --force-reinstall batchnorm` shows which."
    )


def folders_of_libraries() -> tuple[Path, ...]:
    """Where the libraries may be: beside this file, or where an editable installation built them.

    Such an installation leaves Python's files where they are and puts what it built into
    site-packages. It counts where it is one of the tree that this file is in.
    """
    try:
        installed = metadata.distribution("batchnorm")
    except metadata.PackageNotFoundError:
        return (HERE,)
    origin = json.loads(installed.read_text("direct_url.json") or "{}")
    tree = Path(unquote(urlparse(origin.get("url", "")).path))
    if not origin.get("dir_info", {}).get("editable") or HERE.parents[2] != tree:
        return (HERE,)
    return HERE, Path(str(installed.locate_file("batchnorm/_native")))


@functools.cache
def load() -> ctypes.CDLL:
    """The kernels, with the prototypes of kernels/include/batchnorm.h.

    Raises:
        KernelsUnavailable: BATCHNORM_KERNELS=never, or they were not built, or are of another
            version.
    """
    if mode() == "never":
        raise KernelsUnavailable("The environment variable BATCHNORM_KERNELS is never.")
    path = path_of("libbatchnorm_kernels")
    try:
        library = ctypes.CDLL(str(path))
    except OSError as error:
        raise KernelsUnavailable(f"The native kernels cannot be loaded: {error}.") from error
    found = library.bn_abi_version()
    if found != ABI_VERSION:
        raise KernelsUnavailable(
            f"The native kernels are of ABI version {found}, this package needs {ABI_VERSION}: "
            "install batchnorm again."
        )
    for name, arguments in {**{name: one.c for name, one in KERNELS.items()}, **OTHERS}.items():
        function = getattr(library, f"bn_{name}")
        function.argtypes = [_TYPES[letter] for letter in prototype(arguments)]
        function.restype = ctypes.c_int
    library.bn_error.restype = ctypes.c_char_p
    library.bn_advise_huge.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
    library.bn_learned.argtypes = [ctypes.c_char_p, ctypes.c_size_t]
    library.bn_learned.restype = ctypes.c_size_t
    return library


def learned() -> str:
    """What the kernels found fastest on this machine so far: a line per kind of call, or nothing.

    Raises:
        KernelsUnavailable: there are none here.
    """
    kernels = load()
    text = ctypes.create_string_buffer(kernels.bn_learned(None, 0) + 1024)
    kernels.bn_learned(text, len(text))
    return text.value.decode()


def check(library: ctypes.CDLL, code: int) -> None:
    """Raises what a kernel's return code says."""
    if code != 0:
        raise RuntimeError(f"batchnorm kernels: {library.bn_error(code).decode()}")

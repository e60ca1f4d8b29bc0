"""Each extra of a wheel in a fresh environment: `extras.py dist/*.whl [EXTRA ...]`.

Installs the wheel with one extra and nothing else, runs the README's lines for it, and sees that
what was not asked for did not come along. The run of `make test-extras`; needs a package index.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import venv
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))
import pages

WITHOUT = (  # no framework: the function says in one sentence what it takes
    "import sys, numpy, batchnorm\n"
    "try:\n"
    "    batchnorm.batch_norm(numpy.ones((4, 3)), {}, {})\n"
    "except TypeError as error:\n"
    "    said = str(error)\n"
    "assert said == 'batchnorm: x must be a TensorFlow, JAX or PyTorch tensor; got numpy.ndarray. "
    "Convert it first, for example with tensorflow.convert_to_tensor, jax.numpy.asarray or "
    "torch.as_tensor.', said\n"
)
NO_COMMAND = (
    "batchnorm: the command needs typer, which is not installed. "
    "Run: pip install 'batchnorm[cli]'\n"
)
INFERENCE = (
    "import {0}, batchnorm\nx = {1}\n"
    "y, state = batchnorm.batch_norm(x, *batchnorm.init(x), training=True)\n"
    "assert abs(float(state['moving_mean'][0]) - 0.01) < 1e-6, state\n"
    "assert batchnorm.why_not('{0}') is None, batchnorm.why_not('{0}')\n"
)


def snippet(marker: str) -> str:
    """The block of the README that holds these words."""
    (found,) = (one for one in pages.blocks(pages.ROOT / "README.md") if marker in one)
    return found


# extra -> its program, and what must not have come with it
EXTRAS: dict[str, tuple[str, tuple[str, ...]]] = {
    "": (WITHOUT, ("typer", "rich", "keras", "jax", "torch", "tensorflow")),
    "cli": (WITHOUT, ("keras", "jax", "torch", "tensorflow")),
    "torch": (snippet("import batchnorm.torch"), ("keras", "jax", "tensorflow", "typer")),
    "jax": (snippet("import jax"), ("keras", "torch", "tensorflow", "flax", "typer")),
    "flax": ("from batchnorm.flax import BatchNorm", ("keras", "torch", "tensorflow")),
    "tensorflow": (
        INFERENCE.format("tensorflow", "tensorflow.ones((4, 3))"),
        ("jax", "torch", "typer"),
    ),
    "keras,jax": (snippet("import keras"), ("torch", "tensorflow")),
}


def check(wheel: Path, extra: str, folder: Path) -> None:
    """Fails where the extra is not what it says."""
    venv.create(folder, with_pip=True)
    python = folder / "bin" / "python"
    wanted = f"{wheel}[{extra}]" if extra else str(wheel)
    install = [python, "-m", "pip", "install", "-qq", "--disable-pip-version-check"]
    subprocess.run([*install, "-c", pages.ROOT / "constraints.txt", wanted], check=True)
    program, absent = EXTRAS[extra]
    environment = {**os.environ, "KERAS_BACKEND": "jax", "BATCHNORM_KERNELS": "require"}
    environment.pop("PYTHONPATH", None)
    seen = (
        "import importlib.util as u\n"
        f"came = [name for name in {absent!r} if u.find_spec(name)]\nassert not came, came\n"
    )
    for code in (seen, program):
        subprocess.run([python, "-c", code], cwd=folder, env=environment, check=True)
    command = [folder / "bin" / "batchnorm", "--version"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if extra == "cli":
        assert done.stdout.startswith("batchnorm "), done
    elif "typer" in absent:
        assert (done.returncode, done.stderr) == (1, NO_COMMAND), done


def main(wheel: str, *extras: str) -> None:
    for extra in extras or EXTRAS:
        with tempfile.TemporaryDirectory() as folder:
            check(Path(wheel).resolve(), extra, Path(folder))
        print(f"[{extra}] is what it says", flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])

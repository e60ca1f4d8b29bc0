"""The house: arrows point one way, nothing is imported that was not asked for."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import batchnorm

SOURCE = Path(batchnorm.__file__).parent

# layer -> the layers of this package that it may import
LAYERS = {
    "surface": {"surface", "core", "backends", "native"},
    "core": {"core", "backends", "native"},
    # a backend fills the core's Moments and reads its View, two tuples, and knows no more of it
    "backends": {"backends", "native", "values"},
    "native": {"native"},
    "values": {"values"},
}


def layer_of(module: str) -> str:
    parts = module.split(".")
    if len(parts) == 1:
        return "surface"  # the package's public names
    second = parts[1]
    if second in ("_moments", "_axes"):
        return "values"
    return {"backends": "backends", "_native": "native"}.get(
        second, "core" if second.startswith("_") else "surface"
    )


def imports() -> list[tuple[str, str]]:
    edges = []
    for file in sorted(SOURCE.rglob("*.py")):
        relative = file.relative_to(SOURCE.parent).with_suffix("")
        module = ".".join(part for part in relative.parts if part != "__init__")
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Import):
                targets = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                targets = [f"{node.module}.{alias.name}" for alias in node.names]
            else:
                continue
            edges += [(module, target) for target in targets]
    return edges


def test_imports_point_one_way() -> None:
    wrong = [
        f"{module} -> {target}"
        for module, target in imports()
        if target.split(".")[0] == "batchnorm"
        and layer_of(module) != layer_of(target)
        and layer_of(target) not in LAYERS[layer_of(module)] | {"values"}
        and module != "batchnorm"
    ]
    assert not wrong


def test_the_core_names_no_framework() -> None:
    frameworks = {"tensorflow", "jax", "torch", "keras", "flax"}
    wrong = [
        f"{module} -> {target}"
        for module, target in imports()
        if layer_of(module) in ("core", "values") and target.split(".")[0] in frameworks
    ]
    assert not wrong


def test_importing_the_package_imports_no_framework() -> None:
    code = (
        "import sys, batchnorm\n"
        "print(sorted({'tensorflow', 'jax', 'torch', 'keras', 'numpy'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_every_public_name_exists_and_is_documented() -> None:
    for name in batchnorm.__all__:
        assert name == "__version__" or getattr(batchnorm, name).__doc__

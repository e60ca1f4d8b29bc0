"""The house: arrows point one way, nothing is imported that was not asked for."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import tomllib
from importlib import metadata
from pathlib import Path

import batchnorm

SOURCE = Path(batchnorm.__file__).parent
ROOT = Path(__file__).parents[1]
FRAMEWORKS = {"tensorflow", "tf", "jax", "torch", "keras", "flax"}
LONGEST = 350  # lines of a file

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
    if second == "__main__":
        return "surface"
    return {"backends": "backends", "_native": "native"}.get(
        second, "core" if second.startswith("_") else "surface"
    )


def modules(root: Path = SOURCE) -> dict[str, Path]:
    """Every file of a package, by the name it is imported under."""
    result = {}
    for file in sorted(root.rglob("*.py")):
        relative = file.relative_to(root.parent).with_suffix("")
        result[".".join(part for part in relative.parts if part != "__init__")] = file
    return result


def imported(file: Path) -> list[str]:
    """What a file imports, inside of functions too, but not for a type checker alone."""
    tree = ast.parse(file.read_text())
    skipped = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
        for inner in ast.walk(node)
    }
    targets = []
    for node in ast.walk(tree):
        if id(node) in skipped:
            continue
        if isinstance(node, ast.Import):
            targets += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            targets += [f"{node.module}.{alias.name}" for alias in node.names]
    return targets


def imports() -> list[tuple[str, str]]:
    return [(module, target) for module, file in modules().items() for target in imported(file)]


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


def circles(root: Path) -> set[frozenset[str]]:
    """Sets of files each of which leads back to itself through the others."""
    files = modules(root)

    reached = {}
    for module, file in files.items():
        # `from house import a` is about house/a.py, `from house.a import name` too
        targets = {one if one in files else one.rpartition(".")[0] for one in imported(file)}
        reached[module] = targets & set(files) - {module}
    for between in files:  # Warshall 1962
        for module in files:
            if between in reached[module]:
                reached[module] |= reached[between]
    return {
        frozenset(other for other in reached[module] if module in reached[other])
        for module in files
        if module in reached[module]
    }


def test_no_files_import_each_other() -> None:
    roots = (SOURCE, ROOT / "benchmarks")
    found = {one for root in roots for one in circles(root)}
    assert not [sorted(one) for one in found]


def test_a_circle_is_found(tmp_path: Path) -> None:
    root = tmp_path / "house"
    root.mkdir()
    (root / "__init__.py").write_text("from house import a\n")
    (root / "a.py").write_text("from house.b import name\n")
    (root / "b.py").write_text("def name():\n    from house import c\n")
    (root / "c.py").write_text("import house.a\nfrom house.d import other\n")
    (root / "d.py").write_text("if TYPE_CHECKING:\n    from house import c\n")
    assert circles(root) == {frozenset({"house.a", "house.b", "house.c"})}


def test_the_core_names_no_framework() -> None:
    """Neither in an import nor in a name or a string; documentation may."""
    wrong = []
    for module, file in modules().items():
        if layer_of(module) not in ("core", "values"):
            continue
        tree = ast.parse(file.read_text())
        for node in ast.walk(tree):
            if isinstance(getattr(node, "body", None), list) and isinstance(node.body[0], ast.Expr):
                node.body = node.body[1:] or [ast.Pass()]  # a docstring
        words = re.findall("[A-Za-z]+", ast.unparse(tree).lower())
        wrong += [f"{module}: {word}" for word in sorted(FRAMEWORKS & set(words))]
    assert not wrong


def test_a_file_fits_a_sitting() -> None:
    files = [
        file
        for folder in ("src", "kernels", "benchmarks", "tests", "docs", "examples")
        for file in (ROOT / folder).rglob("*")
        if file.suffix in (".py", ".cc", ".h", ".inl")
    ]
    assert len(files) > 100
    lines = {file.relative_to(ROOT).as_posix(): file.read_text().count("\n") for file in files}
    assert not {name: count for name, count in lines.items() if count > LONGEST}


def test_the_wheel_holds_no_benchmark() -> None:
    built = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["scikit-build"]
    assert built["wheel"]["packages"] == ["src/batchnorm"]
    assert not [module for module in modules() if "bench" in module]
    installed = {file.parts[0] for file in metadata.distribution("batchnorm").files or []}
    assert "benchmarks" not in installed


def test_the_citation_is_of_this_version() -> None:
    lines = (ROOT / "CITATION.cff").read_text().splitlines()
    assert f"version: {batchnorm.__version__}" in lines


def test_the_lowest_versions_that_are_claimed_are_those_that_are_run() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    names = ("tensorflow", "jax", "flax", "torch", "keras", "cli")
    claimed = [*project["dependencies"], *(one for name in names for one in extras[name])]
    pins = dict(re.findall(r"^(\w+)==([\d.]+)$", (ROOT / "tests/lowest.txt").read_text(), re.M))
    page = (ROOT / "docs" / "install.md").read_text()
    for name, lowest in (one.split(">=") for one in claimed if ">=" in one):
        assert re.fullmatch(rf"{re.escape(lowest)}(\.0)*", pins[name]), name
        assert name in ("rich", "typer") or f"| {pins[name]} |" in page, name


def test_no_extra_brings_keras_but_its_own() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["dependencies"] == ["numpy>=2.0"]
    extras = project["optional-dependencies"]
    for framework in ("torch", "jax", "flax", "tensorflow", "cli"):
        assert not [one for one in extras[framework] if "keras" in one]


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

"""What the site is made of besides docs/*.md: everything that stands elsewhere in the clone.

The start page is README.md, the reference is one page for each module with public names, the
examples are their own sources, the plots are those of the committed rows. Links keep working in
both places: they are written for the clone, and are turned here.
"""

from __future__ import annotations

import ast
import posixpath
import re
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "src" / "batchnorm"

# page of the site -> the file in the clone that it shows
SHOWN = {
    "index.md": "README.md",
    "changelog.md": "CHANGELOG.md",
    "contributing.md": "CONTRIBUTING.md",
    "security.md": "SECURITY.md",
    "kernels.md": "kernels/README.md",
    "benchmarks.md": "benchmarks/README.md",
}
# what links in the clone name, as the site has it
PLACES = {
    **{file: page for page, file in SHOWN.items()},
    "LICENSE": "LICENSE.txt",
    "kernels": "kernels.md",
    "kernels/test/bench.cc": "kernels.md",
    "benchmarks/measured": "plots.md",
    "benchmarks/features": "benchmarks.md",
}
MODULES = {
    "batchnorm": "The function, and tools for models with layers or modules of any framework.",
    "batchnorm.keras": "Layers for Keras 3 on any of its backends, and what goes with them.",
    "batchnorm.torch": "Modules for PyTorch, and the conversion of models.",
    "batchnorm.flax": "Modules for flax, nnx and linen.",
    "batchnorm.tf1": "TensorFlow 1's functions and layers on today's TensorFlow.",
}
# what public functions take and return, and classes share: a title, names and the members to show
BEHIND: dict[str, tuple[str, tuple[str, ...], str]] = {
    "batchnorm": (
        "What they take and return",
        (
            "batchnorm.tools.report.Report",
            "batchnorm.tools.diagnosis.Diagnosis",
            "batchnorm.tools.rows.Row",
            "batchnorm.tools.reestimation.Reestimation",
            "batchnorm.tools.reestimation.LayerChange",
            "batchnorm.tools.repairing.Repair",
            "batchnorm.tools.repairing.Repaired",
            "batchnorm.tools.folds.Folding",
            "batchnorm.tools.folds.Refusal",
            "batchnorm.tools.data.Batches",
        ),
        "true",
    ),
    "batchnorm.torch": (
        "What the modules have in common",
        ("batchnorm.torch.modules.Modes",),
        "[forward]",
    ),
}
_LINK = re.compile(r"\]\(([^)#\s:]+)(#[^)\s]*)?\)")


def on_files(files: Any, config: Any) -> Any:
    """Adds the pages and pictures that docs/ does not hold."""
    from mkdocs.structure.files import File

    pages = {page: (ROOT / file).read_text() for page, file in SHOWN.items()}
    pages |= {f"examples/{one.stem}.md": example(one) for one in (ROOT / "examples").glob("*.py")}
    pages |= {f"reference/{name.split('.')[-1]}.md": reference(name) for name in MODULES}
    pages["plots.md"] = plots()
    for uri, content in pages.items():
        files.append(File.generated(config, uri, content=content))
    for one in (ROOT / "benchmarks" / "measured").iterdir():
        files.append(File.generated(config, f"plots/{one.name}", abs_src_path=str(one)))
    license_file = str(ROOT / "LICENSE")
    files.append(File.generated(config, "LICENSE.txt", abs_src_path=license_file))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Turns links that hold in the clone into links that hold in the site."""
    uri = page.file.src_uri
    at = posixpath.dirname(SHOWN.get(uri, f"docs/{uri}"))

    def turned(link: re.Match[str]) -> str:
        target = posixpath.normpath(posixpath.join(at, link[1]))
        place = place_of(target)
        if place is None:
            return link[0]
        return f"]({posixpath.relpath(place, posixpath.dirname(uri) or '.')}{link[2] or ''})"

    return _LINK.sub(turned, markdown)


def place_of(target: str) -> str | None:
    """Where the site has a file of the clone; None for what it is no file of."""
    if target in PLACES:
        return PLACES[target]
    if target.startswith("docs/"):
        return target.removeprefix("docs/")
    if target.startswith("examples/") and target.endswith(".py"):
        return target.removesuffix(".py") + ".md"
    return None


def example(file: Path) -> str:
    """A program as a page: what it says of itself, then its lines."""
    source = file.read_text()
    words = ast.get_docstring(ast.parse(source)) or ""
    return f"# {file.name}\n\n{words}\n\n```python\n{source}```\n"


def plots() -> str:
    """The plots of the committed rows, each with its rows."""
    names = sorted(one.stem for one in (ROOT / "benchmarks" / "measured").glob("*.png"))
    lines = ["# Plots", "", "Drawn from the committed rows; [what they mean](performance.md).", ""]
    for name in names:
        lines += [f"## {name}", "", f"![{name}](plots/{name}.png)", ""]
        lines += [f"[{name}.csv](plots/{name}.csv)", ""]
    return "\n".join(lines)


def reference(module: str) -> str:
    """A page with every public name of a module, from its docstring."""
    lines = [f"# {module}", "", MODULES[module], ""]
    for name in public_names(module):
        lines += [f"::: {name}", ""]
    title, behind, members = BEHIND.get(module, ("", (), ""))
    lines += [f"## {title}", ""] if behind else []
    for name in behind:
        lines += [f"::: {name}", "    options:", "      heading_level: 3"]
        lines += [f"      members: {members}", "      show_root_full_path: false", ""]
    return "\n".join(lines)


def public_names(module: str) -> list[str]:
    """What `__all__` of a module holds, and of the modules among that, without importing it.

    A module without `__all__` is asked for its classes and functions.
    """
    path = SOURCE.joinpath(*module.split(".")[1:])
    file = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    body = ast.parse(file.read_text()).body
    told = [one.value for one in body if ast.unparse(one).startswith("__all__ = ")]
    defined = [one.name for one in body if isinstance(one, (ast.ClassDef, ast.FunctionDef))]
    names: list[str] = []
    for name in ast.literal_eval(told[0]) if told else defined:
        inner = path / name
        if name.startswith("_"):
            continue
        if inner.is_dir() or inner.with_suffix(".py").exists():
            names += public_names(f"{module}.{name}")
        else:
            names.append(f"{module}.{name}")
    if module == "batchnorm.flax":
        names += public_names("batchnorm.flax.linen")
    return names

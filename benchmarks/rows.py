"""One measurement, and the files it is kept in."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from benchmarks.cases import Case, Settings
from benchmarks.timing import Times


@dataclass(frozen=True)
class Row:
    """Ours against one peer.

    Attributes:
        ours, peer: Who was measured.
        outputs: "given" where memory was there and touched before, "fresh" where calls allocate.
        ratio: Of the minima, as `ratio_of` says: "ours / peer" or "peer / ours".
        ratio_of_medians: The same of the medians.
        memory: What the environment said about page faults; a key of `cases.MEMORY`.
    """

    question: str
    framework: str
    what: str
    variant: str
    size: str
    megabytes: float
    channels: int
    layout: str
    dtype: str
    outputs: str
    memory: str
    ours: str
    peer: str
    ours_min_ms: float
    ours_median_ms: float
    peer_min_ms: float
    peer_median_ms: float
    ratio_of: str
    ratio: float
    ratio_of_medians: float


def compare(
    settings: Settings,
    case: Case,
    times: Mapping[str, Times],
    ours: str,
    peer: str,
    *,
    over: bool = False,
    outputs: str = "fresh",
) -> Row:
    """The row of two contenders of a case; `over`: ours over the peer, not the peer over ours."""
    us, them = times[ours], times[peer]
    upper, lower = (us, them) if over else (them, us)
    return Row(
        question=settings.question,
        framework=settings.framework,
        what=case.what or ours,
        variant=case.variant,
        size=str(case.size),
        megabytes=case.size.megabytes(case.dtype),
        channels=case.size.c,
        layout=case.layout,
        dtype=case.dtype,
        outputs=outputs,
        memory=settings.memory,
        ours=ours,
        peer=peer,
        ours_min_ms=us.minimum,
        ours_median_ms=us.median,
        peer_min_ms=them.minimum,
        peer_median_ms=them.median,
        ratio_of="ours / peer" if over else "peer / ours",
        ratio=upper.minimum / lower.minimum,
        ratio_of_medians=upper.median / lower.median,
    )


def write(path: Path, rows: Sequence[Row], machine: Mapping[str, str]) -> None:
    """Rows as CSV, each with the machine that it was measured on.

    Rows of the file that another processor measured stay; those of this one are replaced.
    """
    others = read([path]) if path.exists() else []
    kept = [(row, of) for row, of in others if of["cpu"] != machine["cpu"]]
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, [*(one.name for one in fields(Row)), *machine])
        writer.writeheader()
        for row, of in (*kept, *((row, machine) for row in rows)):
            cells = {
                name: f"{value:.5g}" if isinstance(value, float) else value
                for name, value in asdict(row).items()
            }
            writer.writerow({**cells, **of})


def read(paths: Iterable[Path]) -> list[tuple[Row, dict[str, str]]]:
    """Rows that `write` wrote, each with its machine."""
    result = []
    names = {one.name: one.type for one in fields(Row)}
    convert = {"str": str, "float": float, "int": int}
    for path in paths:
        with path.open(newline="") as file:
            for line in csv.DictReader(file):
                row = Row(
                    **{name: convert[str(kind)](line.pop(name)) for name, kind in names.items()}
                )
                result.append((row, line))
    return result

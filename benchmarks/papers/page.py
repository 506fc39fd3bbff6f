"""docs/papers.md and its plots, written from the parts."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from benchmarks.claims import judged, table
from benchmarks.papers.kind import Found, Kind
from benchmarks.published import DOCS

COMMAND = "python -m benchmarks papers"
HEAD = """# The methods beside their papers

Written by `python -m benchmarks papers --page` from what `python -m benchmarks papers` measured; the results are in
`papers-cells.jsonl`. Networks and data are smaller than most papers have: MNIST, and CIFAR-10 behind a JPEG encoding,
which costs 1 to 2 points. Every decision is made on validation pictures; every figure below is of the 10,000 test
pictures, where a section says nothing else. Controls train for the same steps on the same pictures.
"""


def write(kinds: Sequence[tuple[Kind, Found]], folder: Path = DOCS) -> None:
    """Write the page and its plots."""
    claims = [claim for kind, found in kinds for claim in kind.claims(found)]
    parts = [HEAD, "## What is claimed\n", *judged(claims, COMMAND)]
    for kind, found in kinds:
        if found:
            parts += [f"## {kind.title}\n", kind.about.strip() + "\n", table(kind.rows(found))]
            parts += _plots(kind, found, folder)
    (folder / "papers.md").write_text("\n".join(parts))


def _plots(kind: Kind, found: Found, folder: Path) -> list[str]:
    """Write a kind's plots; return the lines that show them."""
    shown = []
    for number, (title, svg) in enumerate(kind.plots(found).items(), 1):
        file = f"papers-{kind.name}-{number}.svg"
        (folder / file).write_text(svg)
        shown.append(f"![{title}]({file})\n")
    return shown

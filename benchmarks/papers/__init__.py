"""The published methods beside the figures of their papers: `python -m benchmarks papers`.

A part is one bit-width, or one seed at one budget; each is a JSON file, and what is there is not measured again. A
method enters by a `Kind` in `KINDS`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks import published
from benchmarks.cells import Measure, fill, stored
from benchmarks.claims import VERDICTS
from benchmarks.networks import available
from benchmarks.papers import bias, gating, joint, page, rounding, sparsity, stage
from benchmarks.papers.kind import Found, Kind

KINDS: tuple[Kind, ...] = (rounding.KIND, sparsity.KIND, stage.KIND, bias.KIND, gating.KIND, joint.KIND)
PUBLISHED = published.DOCS / "papers-cells.jsonl"
"""What docs/papers.md was printed from: a checkout without results of its own goes on from there."""


def run(only: Sequence[str] = (), fresh: bool = False) -> None:
    """Measure the parts that match any pattern (`*` for any; `fresh`: whatever is published) and print what is claimed
    of them."""
    if not available():
        print("papers: the reference data folder (../shared/data) is absent; nothing measured")
        return
    for kind in KINDS:
        _fill(kind, only, fresh)
    for kind in KINDS:
        _show(kind, results(kind))


def write_page() -> None:
    """Write docs/papers.md, its plots and the results behind them from the parts there are."""
    found = {kind: results(kind) for kind in KINDS}
    published.write(PUBLISHED, {kind.cell(part): item for kind in KINDS for part, item in found[kind].items()})
    page.write([(kind, found[kind]) for kind in KINDS])


def results(kind: Kind) -> dict[str, Mapping[str, Any]]:
    """Return a kind's results by part: what this checkout measured, or else what is published."""
    known = _published(kind)
    found = {part: stored(kind.cell(part), kind.code) or known.get(kind.cell(part)) for part in kind.parts()}
    return {part: item for part, item in found.items() if item is not None}


def _published(kind: Kind) -> dict[str, dict[str, Any]]:
    return {name: item for name, item in published.read(PUBLISHED).items() if item.get("code") == kind.code}


def _fill(kind: Kind, only: Sequence[str], fresh: bool) -> None:
    known: Mapping[str, Any] = {} if fresh else _published(kind)
    wanted: dict[str, Measure] = {kind.cell(part): measure for part, measure in kind.parts().items()}
    chosen = {
        name: measure
        for name, measure in wanted.items()
        if name not in known and (not only or any(fnmatchcase(name, pattern) for pattern in only))
    }
    if chosen:
        fill(chosen, kind.title, kind.code)


def _show(kind: Kind, found: Found) -> None:
    if not found:
        return
    console, rows = Console(), kind.rows(found)
    shown = Table(*rows[0], title=kind.title)
    for row in rows[1:]:
        shown.add_row(*row)
    console.print(shown)
    verdicts = Table("claim", "verdict", "figures")
    for claim in kind.claims(found):
        verdicts.add_row(claim.text, VERDICTS[claim.holds], claim.figures)
    console.print(verdicts)

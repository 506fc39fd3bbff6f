"""The published methods beside the figures of their papers: `python -m benchmarks papers`.

A part is one bit-width, or one seed at one budget; each is a JSON file, and what is there is not measured again.
"""

from __future__ import annotations

from collections.abc import Sequence
from fnmatch import fnmatchcase
from functools import partial
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.cells import Measure, fill
from benchmarks.networks import available
from benchmarks.papers import rounding, sparsity

CODE = "papers 1"
"""Results of another version are measured again."""


def run(only: Sequence[str] = ()) -> None:
    """Measure the parts that match any pattern (`*` for any) and print what is claimed of them."""
    if not available():
        print("papers: the reference data folder (../shared/data) is absent; nothing measured")
        return
    found = fill(parts(only), "papers", CODE)
    _print_rounding({name: item for name, item in found.items() if name.startswith("papers-rq-")})
    _print_sparsity({name: item for name, item in found.items() if name.startswith("papers-ltp-")})


def parts(only: Sequence[str] = ()) -> dict[str, Measure]:
    """Return the parts by name."""
    found: dict[str, Measure] = {f"papers-rq-lenet-{bits}": partial(rounding.measure, bits) for bits in rounding.BITS}
    found |= {f"papers-ltp-{name}": partial(sparsity.measure, name) for name in sparsity.PARTS}
    return {name: item for name, item in found.items() if not only or any(fnmatchcase(name, one) for one in only)}


def _print_rounding(found: dict[str, Any]) -> None:
    table = Table(
        "part", "test error", "accepted", "in the paper", "control, float", "straight-through", "search alone"
    )
    for name, item in found.items():
        bits = item["bits"]
        figures = (item["error"], rounding.ACCEPTED[bits], rounding.PAPER[bits])
        others = (item["float_control"], item["straight"], item["search"])
        table.add_row(name, *(f"{value:.2f} %" for value in (*figures, *others)))
    _told(table, rounding.claims(list(found.values())))


def _print_sparsity(found: dict[str, Any]) -> None:
    table = Table("part", "times fewer weights", "test error", "by magnitude", "nothing pruned", "float")
    for name, item in found.items():
        errors = [f"{item[key]:.2f} %" for key in ("error", "magnitude", "control", "float")]
        table.add_row(name, f"{item['fewer']['learned']:.1f}", *errors)
    _told(table, sparsity.claims(list(found.values())))


def _told(table: Table, claims: Sequence[tuple[str, bool]]) -> None:
    console = Console()
    console.print(table)
    for text, holds in claims:
        console.print(f"{text}: {'holds' if holds else 'MISSED'}")

"""What else is claimed of the search: cells of one measurement each, judged beside the comparison."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from typing import Any

from benchmarks.cells import cell
from benchmarks.claims import Claim
from benchmarks.search.store import stored

CELLS = {
    "search-allocation": "benchmarks.allocation",
    "search-fleet": "benchmarks.fleet",
    "search-growth": "benchmarks.growth",
    "search-runners": "benchmarks.runners",
    "search-same": "benchmarks.search.service",
    "search-whatif": "benchmarks.whatif",
}
"""By cell: a module with `measure() -> dict` and `claims(found) -> list[Claim]`."""


def fill() -> None:
    """Measure what has no file yet, alone on the machine: some of it is timed."""
    for name, module in CELLS.items():
        if stored(name) is None:
            cell(name, importlib.import_module(module).measure)


def results() -> Iterator[tuple[str, dict[str, Any]]]:
    """Return (cell, figures) of what is measured."""
    for name in CELLS:
        found = stored(name)
        if found is not None:
            yield name, found


def claims() -> list[Claim]:
    """Return what the measured cells say."""
    return [item for name, found in results() for item in importlib.import_module(CELLS[name]).claims(found)]

"""What one published method puts into the benchmark of papers: its parts, and how they are told."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from benchmarks.cells import Measure
from benchmarks.claims import Claim

Found = Mapping[str, Mapping[str, Any]]
"""Results by part, as a kind names its parts; parts that were not measured are missing."""
Rows = list[list[str]]
Pair = tuple[Mapping[str, Any], Mapping[str, Any]]


def pairs(found: Found, names: Iterable[tuple[str, str]]) -> list[Pair]:
    """Return the results of those pairs of parts of which both were measured."""
    return [(found[own], found[other]) for own, other in names if own in found and other in found]


def no_plots(found: Found) -> Mapping[str, str]:
    """Return no plots."""
    return {}


@dataclass(frozen=True)
class Kind:
    """One method of the benchmark.

    Its parts are the cells `papers-NAME-PART`; results of another `code` are measured again. `about` is Markdown below
    the title: the paper, what is run here, the controls. `rows` returns a table, header first (the header alone where
    nothing was measured); `claims` every claim, those about missing parts with None; `plots` SVG texts by title.
    """

    name: str
    title: str
    about: str
    code: str
    parts: Callable[[], Mapping[str, Measure]]
    rows: Callable[[Found], Rows]
    claims: Callable[[Found], list[Claim]]
    plots: Callable[[Found], Mapping[str, str]] = no_plots

    def cell(self, part: str) -> str:
        """Return the name of a part's cell."""
        return f"papers-{self.name}-{part}"

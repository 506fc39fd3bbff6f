"""docs/search.md and its plots, written from the cells."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.charts import Axes, Line, chart
from benchmarks.claims import judged, table
from benchmarks.networks import NETWORKS
from benchmarks.published import DOCS
from benchmarks.search import judge, report
from benchmarks.search.plan import BUDGETS, STRATEGIES

COMMAND = "python -m benchmarks search"
RULES = """
Every strategy has 200 evaluations of different assignments. An evaluation repairs the network as a trial of the
service does ("sequential", on 256 calibration pictures) and compares it with the float network on 512 evaluation
pictures; tightfit's sensitivity probes count as evaluations, though they look at 256 pictures after the "fast" repair.
All minimise the KL divergence to the float outputs. The best eight of each, by the search pictures, are repaired again
on 512 calibration pictures and measured on 2,048 evaluation pictures that no search sees; the one with the highest
accuracy there goes to the 10,000 test pictures, once. No training, and no polish but where it is said.

Rivals count an assignment's cost before they evaluate it, so that evaluations go only to assignments inside the
budget. `tpe`, `nsga2`: Optuna 5 (multivariate and grouped TPE; a population of 30) over levels of channels and bits,
the budget as a constraint. `grid`: uniform bits by uniform keep ratio, with and without 8 bits at both ends, the
widest feasible first. `greedy`: bits one layer at a time from a KL table, as AIMET does, then walked again with the
evaluations that are left, each step's best few measured in place; `greedy-joint`: the same over channels too.
`bits-only`, `pruning-only`: tightfit in a smaller space. Budgets are shares of the network with 8 bits everywhere;
latencies are modelled on a device that computes in 8 bits, so that only channels save time. `latency`: 8 bits are all
it knows; `pruning-only` is tightfit itself there, and no rival. `storing`: it may hold 2, 4 or 8 bits in memory, as
most such devices can; a search has to find out that fewer than 8 buy no time, which `pruning-only` is told.

*first*, *tied*, *behind*: the mean paired difference to the closest rival, against the larger of its standard
deviation over seeds and the binomial error of 10,000 pictures. Strategies without chance run once.
"""
HEAD = """# The search against its rivals

Written by `python -m benchmarks search --page` from what `python -m benchmarks search` measured.
"""


def write(found: Sequence[dict[str, Any]], folder: Path = DOCS) -> None:
    """Write the page and its plots."""
    parts = [HEAD, RULES]
    parts += ["## What is claimed\n", *judged(report.all_claims(found), COMMAND)]
    for network in reversed(NETWORKS):
        rows = report.accuracy_rows(found, network)
        if rows:
            parts += [f"## {network}\n", "Hold-out accuracy in points (in brackets the seeds' standard deviation).\n"]
            parts += [table(rows), *_plots(found, network, folder)]
    (folder / "search.md").write_text("\n".join(parts))


def _plots(found: Sequence[dict[str, Any]], network: str, folder: Path) -> list[str]:
    """Write a network's plots; return the lines that show them."""
    shown = []
    for name, title, lines in (
        ("budgets", "hold-out accuracy at each budget", _budget_lines(found, network)),
        ("front", "fronts of 200 evaluations, on the hold-out", _front_lines(found, network)),
    ):
        if lines:
            file = f"search-{network}-{name}.svg"
            (folder / file).write_text(chart(_axes(f"{network}: {title}", lines), lines))
            shown.append(f"![{network}: {title}]({file})\n")
    return shown


def _axes(title: str, lines: Sequence[Line]) -> Axes:
    """Return axes that hold every point."""
    xs = [x for line in lines for x, _, _ in line.points]
    ys = [y for line in lines for _, y, _ in line.points]
    low, high = math.floor(math.log2(min(xs))), math.ceil(math.log2(max(xs)))
    ticks = [2.0**power for power in range(low, max(high, low + 1) + 1)]
    bottom, top = max(0.0, min(ys) - 1), min(100.0, max(ys) + 1)
    return Axes(title, "BOPs as a share of 8 bits everywhere", "accuracy, points", ticks, (bottom, top))


def _budget_lines(found: Sequence[dict[str, Any]], network: str) -> list[Line]:
    targets = [target for target in BUDGETS if target.limit.metric == "bops"]
    columns = {target.relative: judge.series(found, network, target.name) for target in targets}
    lines = []
    for strategy in STRATEGIES:
        reached = {x: column[strategy] for x, column in columns.items() if strategy in column}
        points = [(x, 100 * item.mean, 100 * item.spread) for x, item in reached.items() if item.by_seed]
        if points:
            lines.append(Line(strategy, points))
    return lines


def _front_lines(found: Sequence[dict[str, Any]], network: str) -> list[Line]:
    """Return the first seed's front of each strategy: the best accuracy so far, from the left."""
    lines = []
    for cell in found:
        if (cell["network"], cell["budget"], cell["seed"]) == (network, "front", 0):
            best, points = 0.0, []
            for point in sorted(cell["points"], key=lambda item: item["share"]):
                best = max(best, 100 * point["holdout"])
                points.append((point["share"], best, 0.0))
            lines.append(Line(cell["strategy"], points, stepped=True))
    return lines

"""The search against its rivals at equal evaluations, and what else is claimed of it: `python -m benchmarks search`."""

from __future__ import annotations

from collections.abc import Sequence

from benchmarks.networks import available
from benchmarks.search import cells, others, plan, report, store

QUICK = "resnet8_cifar10/bops-16"


def run(
    only: Sequence[str] = (), seeds: Sequence[int] = plan.SEEDS, workers: int = cells.WORKERS, fresh: bool = False
) -> None:
    """Fill the cells that match any filter (network/budget/strategy, `*` for any) and print every table and verdict."""
    if not available():
        print("search: the reference data folder (../shared/data) is absent; nothing measured")
        return
    cells.fill(plan.cells(only, seeds), workers, fresh)
    if not only:
        others.fill()
    report.show(list(cells.results(plan.cells()).values()))


def run_quick() -> None:
    """Compare every strategy once on one network at one budget, whatever is published."""
    run((QUICK,), plan.SEEDS[:1], fresh=True)


def write_page() -> None:
    """Write docs/search.md, its plots and the results behind them from the cells there are."""
    from benchmarks.search import page  # the plotting library is a development extra

    found = cells.results(plan.cells())
    store.publish({**found, **dict(others.results())})
    page.write(list(found.values()))

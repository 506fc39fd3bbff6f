"""`python -m benchmarks [NAME ...]`: run benchmarks; finished cells are kept (delete them to repeat)."""

from __future__ import annotations

import argparse

from benchmarks import (
    allocation,
    budgets,
    export,
    graph,
    large,
    latency,
    measured,
    odd,
    papers,
    queue,
    search,
    service,
    soak,
    trials,
)

SUITES = {
    "allocation": allocation.run,
    "budgets": budgets.run,
    "export": export.run,
    "graph": graph.run,
    "large": large.run,
    "measured": measured.run,
    "latency": latency.run,
    "odd": odd.run,
    "papers": papers.run,
    "queue": queue.run,
    "search": search.run,
    "service": service.run,
    "soak": soak.run,
    "trials": trials.run,
}
PAGES = {"papers": papers.write_page, "search": search.write_page}
QUICK = {"latency": latency.run_quick, "search": search.run_quick}


def main() -> None:
    """Run the named benchmarks, or all."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks")
    parser.add_argument("names", nargs="*", choices=[*SUITES, []], help="which (default: all)")
    parser.add_argument("--quick", action="store_true", help="a small version, where a benchmark has one")
    parser.add_argument("--only", action="append", metavar="PATTERN", help="search, papers: some of the cells")
    parser.add_argument("--workers", type=int, default=2, help="search: how many processes")
    parser.add_argument("--fresh", action="store_true", help="search, papers: measure again what is published")
    parser.add_argument("--minutes", type=float, default=soak.MINUTES, help="soak: for how long")
    parser.add_argument(
        "--page",
        action="store_true",
        help="search, papers: write the page in docs/ and publish its cells",
    )
    asked = parser.parse_args()
    wanted = [name for name in asked.names or ("search",) if name in PAGES]
    if asked.page:
        for name in wanted:
            PAGES[name]()
        return
    if (asked.only or asked.fresh) and not asked.quick:
        _some(asked, wanted)
        return
    chosen = {**SUITES, "soak": lambda: soak.run(asked.minutes), **(QUICK if asked.quick else {})}
    for name in asked.names or SUITES:
        chosen[name]()


def _some(asked: argparse.Namespace, names: list[str]) -> None:
    """Measure the cells that match, of the benchmarks that have patterns for theirs."""
    if "papers" in names:
        papers.run(asked.only or (), fresh=asked.fresh)
    if "search" in names:
        search.run(asked.only or (), workers=asked.workers, fresh=asked.fresh)


if __name__ == "__main__":
    main()

"""`python -m benchmarks [NAME ...]`: run benchmarks; finished cells are kept (delete them to repeat)."""

from __future__ import annotations

import argparse

from benchmarks import allocation, budgets, export, graph, large, latency, measured, odd, papers, search, trials

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
    "search": search.run,
    "trials": trials.run,
}
QUICK = {"latency": latency.run_quick, "search": search.run_quick}


def main() -> None:
    """Run the named benchmarks, or all."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks")
    parser.add_argument("names", nargs="*", choices=[*SUITES, []], help="which (default: all)")
    parser.add_argument("--quick", action="store_true", help="a small version, where a benchmark has one")
    parser.add_argument("--only", action="append", metavar="NETWORK/BUDGET/STRATEGY", help="search: some of its cells")
    parser.add_argument("--workers", type=int, default=2, help="search: how many processes")
    parser.add_argument("--fresh", action="store_true", help="search: measure again what is published")
    parser.add_argument(
        "--page", action="store_true", help="search: write docs/search.md from the cells there are, and publish them"
    )
    asked = parser.parse_args()
    if asked.page:
        search.write_page()
        return
    if (asked.only or asked.fresh) and not asked.quick:
        search.run(asked.only or (), workers=asked.workers, fresh=asked.fresh)
        return
    chosen = {**SUITES, **QUICK} if asked.quick else SUITES
    for name in asked.names or SUITES:
        chosen[name]()


if __name__ == "__main__":
    main()

"""`python -m benchmarks [NAME ...]`: run benchmarks; finished cells are kept (delete them to repeat)."""

from __future__ import annotations

import argparse

from benchmarks import budgets, export, graph, large, latency, measured

SUITES = {
    "budgets": budgets.run,
    "export": export.run,
    "graph": graph.run,
    "large": large.run,
    "measured": measured.run,
    "latency": latency.run,
}
QUICK = {"latency": latency.run_quick}


def main() -> None:
    """Run the named benchmarks, or all."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks")
    parser.add_argument("names", nargs="*", choices=[*SUITES, []], help="which (default: all)")
    parser.add_argument("--quick", action="store_true", help="a small version, where a benchmark has one")
    asked = parser.parse_args()
    chosen = {**SUITES, **QUICK} if asked.quick else SUITES
    for name in asked.names or SUITES:
        chosen[name]()


if __name__ == "__main__":
    main()

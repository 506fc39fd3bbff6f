"""`python -m benchmarks [NAME ...]`: run benchmarks; finished cells are kept (delete them to repeat)."""

from __future__ import annotations

import argparse

from benchmarks import budgets, export, graph, large

SUITES = {"budgets": budgets.run, "export": export.run, "graph": graph.run, "large": large.run}


def main() -> None:
    """Run the named benchmarks, or all."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks")
    parser.add_argument("names", nargs="*", choices=[*SUITES, []], help="which (default: all)")
    for name in parser.parse_args().names or SUITES:
        SUITES[name]()


if __name__ == "__main__":
    main()

"""Fuzz both readers with mutated files: `python -m tests.fuzz [--count N] [--seed N] [--reader onnx] [--json]`."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from tests.fuzz.mutate import mutated
from tests.fuzz.run import Tally, fuzz
from tests.fuzz.seeds import seeds

READERS = ("onnx", "pt2")


def arguments() -> argparse.Namespace:
    """Return what was asked for."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("--count", type=int, default=10_000, help="files per reader")
    parser.add_argument("--seed", type=int, default=0, help="another seed mutates otherwise")
    parser.add_argument("--reader", choices=READERS, action="append", help="one reader only")
    parser.add_argument("--json", action="store_true", help="one JSON document instead of a table")
    parser.add_argument("--keep", type=Path, help="write the files that failed into this folder")
    return parser.parse_args()


def show(console: Console, tallies: list[Tally]) -> None:
    """Print the tally of problems by slug, then the failures."""
    table = Table("outcome", *(tally.reader for tally in tallies))
    for slug in sorted(set().union(*(tally.slugs for tally in tallies))):
        table.add_row(slug, *(f"{tally.slugs[slug]:,}" for tally in tallies))
    table.add_section()
    table.add_row("files", *(f"{tally.slugs.total():,}" for tally in tallies))
    table.add_row("slowest, ms of CPU", *(f"{tally.slowest_s * 1e3:.0f}" for tally in tallies))
    table.add_row("largest, MiB", *(f"{tally.largest_bytes / 2**20:.0f}" for tally in tallies))
    table.add_row("failures", *(f"{len(tally.failures)}" for tally in tallies))
    console.print(table)
    for tally in tallies:
        for failure in tally.failures[:20]:
            console.print(f"{tally.reader} {failure['number']}: {failure['why']}", markup=False)


def main() -> None:
    """Run, print, and exit with 1 where a file did anything but be read or refused by name."""
    asked = arguments()
    tallies = []
    with Progress(console=Console(stderr=True)) as progress:
        for reader in asked.reader or READERS:
            task = progress.add_task(reader, total=asked.count)
            tallies.append(fuzz(reader, asked.count, asked.seed, lambda _, task=task: progress.advance(task)))
    if asked.keep:
        asked.keep.mkdir(parents=True, exist_ok=True)
        for tally in tallies:
            for failure in tally.failures:
                data = mutated(tally.reader, seeds(tally.reader), failure["number"], asked.seed)
                (asked.keep / f"{failure['number']}.{tally.reader}").write_bytes(data)
    if asked.json:
        print(json.dumps([tally.to_json() for tally in tallies], indent=2))
    else:
        show(Console(), tallies)
    sys.exit(any(tally.failures for tally in tallies))


if __name__ == "__main__":
    main()

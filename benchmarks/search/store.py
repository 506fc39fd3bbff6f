"""Evaluations in one SQLite file (strategies and seeds ask for the same ones again and again), and published cells."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from app.domain.candidate import Measurement
from benchmarks import published as published_file
from benchmarks.cells import RESULTS
from worker.cache import MEASUREMENT_VERSION

FILE = RESULTS / "evaluations.sqlite"
PUBLISHED = published_file.DOCS / "search-cells.jsonl"
"""What docs/search.md was printed from: a checkout without results of its own goes on from there."""
BUSY_S = 60.0
ALIKE = {6: 5}
"""Versions that measure the networks here as an earlier one did: 6 rounds linear layers over tokens otherwise."""


def code_version() -> str:
    """Return the version of what is measured: stored evaluations of another one are not used."""
    return f"measurement {ALIKE.get(MEASUREMENT_VERSION, MEASUREMENT_VERSION)}"


class Evaluations:
    """The file of evaluations; safe for several processes."""

    def __init__(self, file: Path = FILE) -> None:
        file.parent.mkdir(parents=True, exist_ok=True)
        self._database = sqlite3.connect(file, timeout=BUSY_S, isolation_level=None)
        self._database.execute("pragma journal_mode=wal")
        self._database.execute("pragma synchronous=normal")
        self._database.execute("create table if not exists evaluations (key text primary key, result text)")

    def get(self, key: str) -> Measurement | None:
        """Return the stored measurement of a key."""
        row = self._database.execute("select result from evaluations where key = ?", (key,)).fetchone()
        return None if row is None else Measurement.from_json(json.loads(row[0]))

    def put(self, key: str, found: Measurement) -> None:
        """Store a measurement."""
        text = json.dumps(found.to_json())
        self._database.execute("insert or replace into evaluations values (?, ?)", (key, text))


def stored(name: str) -> dict[str, Any] | None:
    """Return a cell's result: what this checkout measured, or else what is published of today's measurement."""
    file = RESULTS / f"{name}.json"
    if file.exists():
        found: dict[str, Any] = json.loads(file.read_text())
        return found
    return published().get(name)


@cache
def published() -> dict[str, dict[str, Any]]:
    """Return the published results by cell name, without those of another measurement."""
    found = published_file.read(PUBLISHED)
    return {name: item for name, item in found.items() if item.get("code", code_version()) == code_version()}


def publish(results: Mapping[str, Mapping[str, Any]]) -> None:
    """Write results into the file of published ones."""
    published_file.write(PUBLISHED, results)

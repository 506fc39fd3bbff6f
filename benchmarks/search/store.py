"""Evaluations kept in one SQLite file: strategies and seeds ask for the same assignments again and again."""

from __future__ import annotations

import json
import sqlite3
from pathlib import Path

from app.domain.candidate import Measurement
from benchmarks.cells import RESULTS
from worker.cache import MEASUREMENT_VERSION

FILE = RESULTS / "evaluations.sqlite"
BUSY_S = 60.0


def code_version() -> str:
    """Return the version of what is measured: stored evaluations of another one are not used."""
    return f"measurement {MEASUREMENT_VERSION}"


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

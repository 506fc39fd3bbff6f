"""Published cells: read where nothing was measured here, left out where the measurement is another one."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks.search import store


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Use a folder of its own for results and published cells."""
    monkeypatch.setattr(store, "RESULTS", tmp_path)
    monkeypatch.setattr(store, "PUBLISHED", tmp_path / "cells.jsonl")
    store.published.cache_clear()
    yield tmp_path
    store.published.cache_clear()


def test_stored_when_published_then_that_and_what_was_measured_here_goes_before(folder: Path) -> None:
    code = store.code_version()
    store.publish({"b": {"holdout": 0.5, "code": code}, "a": {"holdout": 0.25, "code": code}})
    assert [json.loads(line)["name"] for line in store.PUBLISHED.read_text().splitlines()] == ["a", "b"]
    assert store.stored("a") == {"holdout": 0.25, "code": code}
    assert store.stored("c") is None
    (folder / "a.json").write_text(json.dumps({"holdout": 0.75}))
    assert store.stored("a") == {"holdout": 0.75}


def test_stored_when_published_by_another_measurement_then_none(folder: Path) -> None:
    store.publish({"old": {"code": "measurement 0"}, "timed": {"seconds": 2.0}})
    assert store.stored("old") is None
    assert store.stored("timed") == {"seconds": 2.0}

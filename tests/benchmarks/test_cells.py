"""Resumable cells: what is stored is not measured again, unless by other code; a failure does not end the others."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks import cells


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(cells, "RESULTS", tmp_path / "results")
    return tmp_path / "results"


class Counting:
    def __init__(self) -> None:
        self.calls = 0

    def __call__(self) -> dict[str, Any]:
        self.calls += 1
        return {"value": self.calls}


def test_cell_when_stored_then_read_and_by_other_code_measured_again(folder: Path) -> None:
    measure = Counting()
    assert [cells.cell("a", measure)["value"] for _ in range(3)] == [1, 1, 1]
    assert cells.cell("a", measure, "2")["value"] == 2
    assert cells.cell("a", measure, "2")["value"] == 2
    assert json.loads((folder / "a.json").read_text())["code"] == "2"
    assert cells.cell("a", measure)["value"] == 2  # no version asked for: any will do


def test_fill_when_a_cell_fails_then_the_others_are_there_and_it_is_said(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    measure = Counting()
    found = cells.fill({"one": measure, "bad": lambda: {"value": 1 // 0}, "two": measure}, "cells", "1")
    assert {name: item["value"] for name, item in found.items()} == {"one": 1, "two": 2}
    assert "ZeroDivisionError" in capsys.readouterr().out
    assert sorted(file.name for file in folder.iterdir()) == ["one.json", "two.json"]
    again = cells.fill({"one": measure, "two": measure}, "cells", "1")
    assert (again == found, measure.calls) == (True, 2)

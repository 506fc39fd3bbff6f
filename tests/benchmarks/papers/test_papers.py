"""The benchmark of papers: names of parts, verdicts from made-up results, the page and what is published beside it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from benchmarks import cells, papers
from benchmarks.papers import page, rounding, sparsity
from benchmarks.papers.kind import Kind

RQ = {
    "float": {"float": 0.60, "trained": 0.58},
    "4": {"bits": 4, "error": 0.70, "search": 0.8, "float": 0.60},
    "4-straight": {"bits": 4, "error": 0.9},
    "2": {"bits": 2, "error": 1.01, "search": 2.5, "float": 0.60},
}
LTP = {
    "lenet-learned": {"error": 0.70, "float": 0.6, "fewer": 20.0},
    "lenet-magnitude": {"error": 0.95, "float": 0.6, "fewer": 20.0},
    "lenet-gradual": {"error": 1.20, "float": 0.6, "fewer": 20.0},
    "lenet-control": {"error": 0.50, "float": 0.6},
    "resnet8_cifar10-learned": {"error": 27.0, "float": 24.0, "fewer": 5.2},
    "resnet8_cifar10-magnitude": {"error": 26.0, "float": 24.0, "fewer": 5.2},
    "resnet8_cifar10-control": {"error": 25.0, "float": 24.0},
}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Use a folder of its own for results and published parts."""
    monkeypatch.setattr(cells, "RESULTS", tmp_path / "results")
    monkeypatch.setattr(papers, "PUBLISHED", tmp_path / "cells.jsonl")
    return tmp_path


@pytest.mark.parametrize("kind", papers.KINDS, ids=lambda kind: kind.name)
def test_kind_when_nothing_is_measured_then_its_claims_are_open_and_its_table_is_empty(kind: Kind) -> None:
    assert kind.parts()
    claims = kind.claims({})
    assert claims
    assert {claim.holds for claim in claims} == {None}
    assert len(kind.rows({})) == 1


def test_kinds_when_named_then_no_cell_twice() -> None:
    names = [kind.cell(part) for kind in papers.KINDS for part in kind.parts()]
    assert len(names) == len(set(names))
    assert all(name.startswith("papers-") for name in names)


def test_claims_of_rounding_when_measured_then_against_the_paper_and_float() -> None:
    said = {claim.text: (claim.holds, claim.figures) for claim in rounding.claims(RQ)}
    assert said == {
        "RQ, LeNet-5 at 8 bits: at most 0.75 % test error": (None, "-"),
        "RQ, LeNet-5 at 4 bits: at most 0.80 % test error": (True, "0.70 %; the paper's 0.58 % not reached"),
        "RQ, LeNet-5 at 2 bits: at most 1.00 % test error": (False, "1.01 %; the paper's 0.76 % not reached"),
        "RQ, LeNet-5 at 4 bits: within 0.15 points of float": (True, "+0.10 points"),
    }


def test_claims_of_sparsity_when_measured_then_against_control_and_magnitude() -> None:
    verdicts = [(claim.holds, claim.figures) for claim in sparsity.claims(LTP)]
    assert verdicts == [
        (True, "20.0 times, +0.20 points"),
        (True, "+0.25 points"),
        (True, "+0.50 points"),
        (False, "5.2 times, +2.00 points"),
        (False, "-1.00 points"),
        (None, "-"),
    ]


def test_claims_of_sparsity_when_seeds_are_measured_then_of_those_that_both_have() -> None:
    more = {
        "resnet8_cifar10-learned-1": {"error": 25.0, "float": 24.0, "fewer": 5.0},
        "resnet8_cifar10-control-1": {"error": 24.0, "float": 24.0},
        "resnet8_cifar10-control-2": {"error": 20.0, "float": 24.0},
    }
    claim = sparsity.claims({**LTP, **more})[3]
    assert (claim.holds, claim.figures) == (True, "5.0 times, +1.50 points (+2.00, +1.00)")
    dense = {**more, "resnet8_cifar10-learned-1": {"error": 25.0, "float": 24.0, "fewer": 4.9}}
    assert sparsity.claims({**LTP, **dense})[3].holds is False
    row = sparsity.rows({**LTP, **more})[2]
    assert row[2:6] == ["26.00 % ± 1.41", "26.00 %", "-", "23.00 % ± 2.65"]


def test_results_when_measured_here_or_published_then_both_and_of_this_code_alone(folder: Path) -> None:
    kind, calls = rounding.KIND, []

    def measured() -> dict[str, Any]:
        calls.append(1)
        return dict(RQ["4"])

    papers.published.write(
        papers.PUBLISHED,
        {kind.cell("2"): {**RQ["2"], "code": kind.code}, kind.cell("8"): {"error": 9.0, "code": "another"}},
    )
    cells.cell(kind.cell("4"), measured, kind.code)
    assert papers.results(kind).keys() == {"2", "4"}
    assert papers.results(kind)["2"]["error"] == 1.01


def test_page_when_written_then_verdicts_tables_and_what_is_missing(folder: Path) -> None:
    page.write([(rounding.KIND, RQ), (sparsity.KIND, {})], folder)
    text = (folder / "papers.md").read_text()
    assert "| RQ, LeNet-5 at 2 bits: at most 1.00 % test error | MISSES | 1.01 %;" in text
    assert "| 4 | 0.70 % | 0.80 % | 0.58 % | 0.90 % | 0.80 % |" in text
    assert "Not measured yet: 7 of 10 claims" in text
    assert f"## {sparsity.KIND.title}" not in text

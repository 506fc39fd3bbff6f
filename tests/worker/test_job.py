"""What a record keeps of a refusal, and how many pictures a search looks at."""

from __future__ import annotations

import json

import pytest

from worker.job import MAX_DETAIL, MAX_ERROR, pictures, problem, search_settings
from worker.search.rows import Stop


def test_problem_when_names_are_plain_then_kept_as_they_are() -> None:
    errors = [{"pointer": "/graph/größe", "code": "unsupported-operator", "detail": "Loop"}]
    made = problem("unsupported-operator", "Loop (1x)", errors)
    assert (made["type"], made["title"], made["detail"]) == (
        "/problems/unsupported-operator",
        "Unsupported operator",
        "Loop (1x)",
    )
    assert made["errors"] == errors


def test_problem_when_a_name_is_no_text_then_it_is_replaced_and_the_document_can_be_sent() -> None:
    errors = [{"pointer": "/graph/\ud800\0x", "code": "c", "detail": "\udfff"}]
    made = problem("unsupported-operator", "a\ud83d\0b", errors)
    assert made["detail"] == "a?\ufffdb"
    assert made["errors"] == [{"pointer": "/graph/?\ufffdx", "code": "c", "detail": "?"}]
    assert json.loads(json.dumps(made, ensure_ascii=False).encode("utf-8")) == made


def test_problem_when_a_name_is_endless_then_it_is_cut() -> None:
    made = problem("weights-mismatch", "x" * 10_000_000, [{"pointer": "y" * 1_000_000, "code": "c", "detail": "d"}])
    assert len(made["detail"]) == MAX_DETAIL and made["detail"].endswith("x...")
    assert len(made["errors"][0]["pointer"]) == MAX_ERROR


@pytest.mark.parametrize(
    ("macs", "wanted"),
    [
        (1_000_000, {"calibration": 512, "screen": 256, "full": 2048, "thorough": 4096, "fast": 128}),
        (100_000_000, {"calibration": 200, "screen": 60, "full": 500, "thorough": 400, "fast": 40}),
        (400_000_000, {"calibration": 64, "screen": 32, "full": 128, "thorough": 100, "fast": 16}),
        (0, {"calibration": 512, "screen": 256, "full": 2048, "thorough": 4096, "fast": 128}),
    ],
)
def test_pictures_when_one_costs_more_then_fewer_are_looked_at(macs: int, wanted: dict[str, int]) -> None:
    assert pictures(macs) == wanted


def test_settings_when_a_front_is_asked_for_then_its_axes_else_none() -> None:
    limits = [{"metric": "weight_bytes", "max": 9}, {"metric": "bops", "max": 9}]
    axes = ["kl", "bops"]
    asked = {"goal": "front", "stop": {"patience": 9, "growth": 0.0}}
    assert search_settings({"search": {}, "limits": limits}).axes == ()
    assert search_settings({"search": {"axes": axes}}).axes == ()
    assert search_settings({"search": {**asked, "axes": axes}}).axes == ("kl", "bops")
    assert search_settings({"search": asked, "limits": limits}).axes == ("kl", "weight_bytes")
    assert search_settings({"search": asked, "limits": limits}).stop == Stop(patience=9, growth=0.0)
    assert search_settings({"search": {"stop": {"patience": 9}}}).stop == Stop(patience=9, growth=0.01)

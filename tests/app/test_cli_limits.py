"""Limits, verdicts and amounts, by numbers."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.commands.limits import parse_limit, parse_limits
from app.domain.words import amount, duration, exit_code, percent, quality_verdict, verdict


@pytest.mark.parametrize(
    ("text", "limit"),
    [
        ("bops<=1/16", {"metric": "bops", "relative": 0.0625}),
        ("bops <= 25%", {"metric": "bops", "relative": 0.25}),
        ("macs<=0.5x", {"metric": "macs", "relative": 0.5}),
        ("bops<=1/64 of float", {"metric": "bops", "relative": 0.015625, "relative_to": "float"}),
        ("bops<=120M", {"metric": "bops", "max": 120e6}),
        ("weight_bytes<=30kB", {"metric": "weight_bytes", "max": 30_000.0}),
        ("weight_bytes<=30KiB", {"metric": "weight_bytes", "max": 30_720.0}),
        ("size<=1.5MB", {"metric": "weight_bytes", "max": 1.5e6}),
        ("latency_ms<=2", {"metric": "latency_ms", "max": 2.0}),
        ("latency<=250us", {"metric": "latency_ms", "max": 0.25}),
        ("memory<=256 KiB", {"metric": "peak_activation_bytes", "max": 262_144.0}),
        ("energy_mj<=1.2", {"metric": "energy_mj", "max": 1.2}),
        ("weight_bytes<=1e5", {"metric": "weight_bytes", "max": 100_000.0}),
        ("latency<=2ms measured", {"metric": "latency_ms", "max": 2.0, "evidence": "measured"}),
        (
            "latency<=50% of float measured p95",
            {"metric": "latency_ms", "relative": 0.5, "relative_to": "float", "evidence": "measured", "stat": "p95"},
        ),
    ],
)
def test_limit_when_well_written_then_becomes_the_request_field(text: str, limit: dict[str, object]) -> None:
    assert parse_limit(text) == limit


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("bops", "not a limit"),
        ("speed<=2", "not a metric"),
        ("bops<=1/0", "divides by zero"),
        ("bops<=1/4 measured", "only latency is measured"),
        ("latency_ms<=3 parsec", "not a unit"),
        ("weight_bytes<=-5", "not an amount"),
        ("weight_bytes<=0", "greater than zero"),
        ("bops<=0%", "greater than zero"),
        ("latency_ms<=2 of float", "needs a ratio"),
        ("bops<=nan", "not an amount"),
    ],
)
def test_limit_when_malformed_then_says_what_is_wrong(text: str, told: str) -> None:
    with pytest.raises(ValueError, match=told):
        parse_limit(text)


@given(st.integers(1, 10**6), st.integers(1, 10**6))
def test_limit_when_a_ratio_then_divides_exactly(top: int, bottom: int) -> None:
    assert parse_limit(f"bops<={top}/{bottom}")["relative"] == top / bottom


@given(st.floats(1e-3, 1e12))
def test_limit_when_a_plain_number_then_keeps_it(value: float) -> None:
    assert parse_limit(f"bops<={value!r}")["max"] == value


def test_limits_when_several_then_keep_their_order() -> None:
    assert [limit["metric"] for limit in parse_limits(["latency_ms<=2", "bops<=1/8"])] == ["latency_ms", "bops"]


@pytest.mark.parametrize(
    ("state", "outcome", "code"),
    [
        ("completed", "feasible", 0),
        ("completed", "best_effort", 3),
        ("completed", "none", 1),
        ("failed", None, 1),
        ("cancelled", "feasible", 1),
        ("running", None, 1),
    ],
)
def test_exit_code_when_search_ends_then_tells_scripts_how(state: str, outcome: str | None, code: int) -> None:
    assert exit_code({"state": state, "outcome": outcome}) == code


@pytest.mark.parametrize(
    ("metric", "value", "text"),
    [
        ("weight_bytes", 30_000, "30 kB"),
        ("weight_bytes", 999, "999 B"),
        ("weight_bytes", 1_234_567, "1.23 MB"),
        ("bops", 12_501_000_000, "12.5 G"),
        ("macs", 0, "0"),
        ("latency_ms", 0.0123, "12.3 µs"),
        ("latency_ms", 2.0, "2 ms"),
        ("energy_mj", 0.5, "0.5 mJ"),
        ("bops", 999_900, "1 M"),
        ("weight_bytes", -1500, "-1.5 kB"),
        ("latency_ms", None, "–"),
    ],
)
def test_amount_when_written_then_has_three_digits_and_a_unit(metric: str, value: float | None, text: str) -> None:
    assert amount(metric, value) == text


def test_percent_and_duration_when_written_then_read_as_people_say_them() -> None:
    assert [percent(0.98765), percent(None), percent(1.0, 0)] == ["98.77 %", "–", "100 %"]
    assert [duration(s) for s in (0.25, 12.34, 61, 3700)] == ["250 ms", "12.3 s", "1 min 01 s", "1 h 01 min"]


def test_quality_verdict_when_judged_then_value_bound_and_whether_it_is_kept() -> None:
    judged = {"metric": "miou", "floor": 0.6, "value": 0.55, "met": False}
    assert quality_verdict(judged) == "mIoU 55.00 %, asked for ≥ 60.00 %: broken"
    judged = {"metric": "kl", "ceiling": 0.1, "value": 0.05, "met": True}
    assert quality_verdict(judged) == "KL 0.0500, asked for ≤ 0.1000: kept"


def test_verdict_when_failed_then_names_the_reason() -> None:
    assert verdict({"state": "failed", "problem": {"detail": "the child ran out of memory"}}).endswith("out of memory")
    assert verdict({"state": "completed", "outcome": "feasible"}).startswith("Inside the budget")

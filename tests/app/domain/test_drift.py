"""Drift: verdicts, intervals and the refit's factor from (predicted, measured) pairs."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.domain.cost import count
from app.domain.device import DeviceProfile
from app.domain.drift import assess, bias, correction, p90, refit
from app.domain.space import widest
from tests.app.domain.drawings import profile, two_convs

FACTORS = st.lists(st.floats(0.2, 5.0), min_size=1, max_size=30)


def pairs(*factors: float) -> list[tuple[float, float]]:
    return [(2.0, 2.0 * factor) for factor in factors]


def test_assess_when_nothing_was_measured_then_the_profiles_own_error_is_the_interval() -> None:
    found = assess([], 0.12)
    assert (found.pairs, found.bias, found.verdict, found.interval) == (0, None, "unknown", 0.12)
    assert assess([]).interval == 0.5


def test_assess_when_fewer_than_five_pairs_then_unknown_but_the_interval_widens() -> None:
    found = assess(pairs(1.6, 1.6), 0.1)
    assert (found.verdict, found.interval) == ("unknown", pytest.approx(0.6))


@pytest.mark.parametrize(
    ("factors", "verdict"),
    [
        ([1.05] * 5, "ok"),
        ([1.2] * 5, "drifting"),
        ([1.5] * 7, "drifting"),
        ([1.5] * 8, "stale"),
        ([0.5] * 8, "stale"),
    ],
)
def test_assess_when_errors_grow_then_the_verdict_follows(factors: list[float], verdict: str) -> None:
    assert assess(pairs(*factors), 0.1).verdict == verdict


def test_assess_when_the_error_falls_just_below_a_threshold_then_the_verdict_holds() -> None:
    close = [1.14] * 60
    assert assess(pairs(*[1.16] * 5, *close)).verdict == "drifting"
    assert assess(pairs(*close)).verdict == "ok"


def test_bounds_when_asked_then_predicted_plus_and_minus_the_interval() -> None:
    found = assess(pairs(*[1.2] * 5), 0.1)
    assert found.bounds(10.0) == (pytest.approx(8.0), pytest.approx(12.0))


def test_correction_when_fewer_than_five_pairs_then_refused() -> None:
    with pytest.raises(ValueError, match="4 measured latencies"):
        correction(pairs(1, 1, 1, 1))


@given(FACTORS, st.floats(0.25, 4.0))
def test_bias_when_every_measurement_is_scaled_then_it_scales_along(factors: list[float], scale: float) -> None:
    scaled = [(one, other * scale) for one, other in pairs(*factors)]
    assert bias(scaled) == pytest.approx(bias(pairs(*factors)) * scale)


@given(FACTORS)
def test_p90_when_asked_then_at_least_nine_of_ten_lie_at_or_below(factors: list[float]) -> None:
    assert sum(value <= p90(factors) for value in factors) >= 0.9 * len(factors)


@given(FACTORS, st.floats(0.0, 1.0))
def test_assess_when_refitted_by_its_own_bias_then_unbiased(factors: list[float], error: float) -> None:
    first = assess(pairs(*factors), error)
    assert first.bias is not None
    again = assess([(one * first.bias, other) for one, other in pairs(*factors)], error)
    assert again.bias == pytest.approx(1.0)
    assert first.interval >= error


@given(st.floats(0.2, 5.0))
def test_refit_when_every_latency_was_off_by_one_factor_then_the_next_revision_predicts_it(factor: float) -> None:
    graph, device = two_convs(), profile()
    assignment = widest(graph, 8)
    before = count(graph, assignment, device).latency_ms
    found = refit(device.to_json(), [(before, before * factor)] * 5)
    after = count(graph, assignment, DeviceProfile.from_json(found)).latency_ms
    assert after == pytest.approx(before * factor)
    assert found["evidence"]["error_p90"] == pytest.approx(0.0, abs=1e-9)

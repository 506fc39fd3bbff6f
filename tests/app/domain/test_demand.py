"""Measured limits: what keeps them, and the modelled limit that corresponds to one."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.domain.demand import (
    WIDEST,
    Demand,
    Standard,
    Timing,
    demand_of,
    integers_slower_by,
    is_host,
    narrow_only,
    narrow_pair,
    width_at,
)
from tests.app.domain.drawings import profile

FIGURES = {"min_ms": 2.0, "median_ms": 2.2, "p95_ms": 3.0}
FLOAT = Timing("float", 4.0, FIGURES, FIGURES)


def timing(modelled: float, measured: float, beside: float = 2.0) -> Timing:
    figures = {"min_ms": measured, "median_ms": measured * 1.1, "p95_ms": measured * 2}
    return Timing(f"{modelled}", modelled, figures, {"min_ms": beside, "median_ms": beside, "p95_ms": beside})


def standard(**fields: object) -> Standard:
    return Standard(Demand(**fields), FLOAT, FLOAT)  # type: ignore[arg-type]


def test_limit_when_a_third_of_the_float_file_then_a_third_of_its_measured_latency() -> None:
    assert standard(relative=1 / 3).limit_ms == pytest.approx(2 / 3)
    assert standard(relative=0.5, stat="p95").limit_ms == pytest.approx(1.5)
    assert standard(max=0.7).limit_ms == 0.7


def test_is_met_when_the_machine_was_twice_as_slow_then_a_relative_limit_is_judged_by_the_share() -> None:
    slow = timing(1.0, 1.2, beside=4.0)
    assert standard(relative=1 / 3).is_met(slow)
    assert not standard(max=2 / 3).is_met(slow)


def test_is_met_when_within_the_margin_below_the_limit_then_not_kept() -> None:
    assert not standard(relative=0.5).is_met(timing(1.0, 0.98))
    assert standard(relative=0.5).is_met(timing(1.0, 0.96))
    assert standard(relative=0.5).keeps(timing(1.0, 0.98))
    assert not standard(relative=0.5).keeps(timing(1.0, 1.01))


@given(st.floats(0.3, 3.0), st.floats(0.5, 2.0), st.floats(0.1, 0.9))
def test_aim_when_measured_follows_a_power_of_modelled_then_the_aim_hits_the_limit(
    factor: float, slope: float, share: float
) -> None:
    held = standard(relative=share)
    known = [timing(modelled, factor * modelled**slope) for modelled in (0.2, 0.5, 1.0, 2.0)]
    assert factor * held.aim_ms(known) ** slope == pytest.approx(held.limit_ms * 0.97)


def test_integers_slower_by_when_twice_as_slow_everywhere_then_two() -> None:
    floats, integers = [timing(1, 0.5), timing(2, 1.0)], [timing(1, 1.0), timing(2, 2.0)]
    assert integers_slower_by(floats, integers) == pytest.approx(2.0)


def test_width_at_when_time_follows_a_power_of_width_then_its_inverse() -> None:
    points = [(width, 2.0 * width**1.5) for width in (1.0, 0.5, 0.25, 0.125)]
    assert width_at(points, 0.4) == pytest.approx(0.2 ** (2 / 3))
    assert width_at(points, 0.01) == pytest.approx(0.005 ** (2 / 3))
    assert width_at(points, 8.0) == pytest.approx(4.0 ** (2 / 3))


def test_width_at_when_every_width_takes_the_same_time_then_the_widest_or_nothing() -> None:
    points = [(1.0, 0.014121), (0.69, 0.014261), (0.49, 0.014372)]
    assert width_at(points, 0.0225) == pytest.approx(WIDEST)
    assert width_at(points, 0.0100) == pytest.approx(0.0)


def test_width_at_when_there_is_one_network_then_its_width_or_nothing() -> None:
    assert width_at([(1.0, 0.5)], 0.6) == 1.0
    assert width_at([(1.0, 0.5)], 0.4) == 0.0


def test_narrow_only_when_eight_bits_are_all_there_is_then_they_stay() -> None:
    device = profile(pairs={"conv": ((8, 8), (7, 8), (4, 8)), "default": ((8, 8),)})
    assert narrow_only(device).pairs == {"conv": ((7, 8), (4, 8)), "default": ((8, 8),)}
    assert narrow_pair(device) == (7, 8) and narrow_pair(profile(pairs={"default": ((8, 8),)})) is None


def test_demand_of_when_no_limit_asks_for_measuring_then_none() -> None:
    assert demand_of({"limits": [{"metric": "latency_ms", "max": 3.0}]}) is None
    asked = {"metric": "latency_ms", "relative": 0.5, "relative_to": "float", "evidence": "measured"}
    assert demand_of({"limits": [asked]}) == Demand(None, 0.5, "float", "min")


def test_is_host_when_the_profile_is_derived_from_the_built_in_one_then_true() -> None:
    assert [is_host(name) for name in ("onnxruntime-cpu", "onnxruntime-cpu-refit", "esp32s3")] == [True, True, False]

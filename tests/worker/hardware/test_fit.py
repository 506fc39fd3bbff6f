"""Fitting: what generated the times is found again."""

from __future__ import annotations

import pytest

from app.domain.latency import LatencyTable, Work
from worker.hardware.fit import Sample, corrected, features, fit

TRUE = LatencyTable(
    {
        "linear.float": {"calls": 0.002, "macs": 1e-6},
        "conv.int8.window.blocked": {"calls": 0.003, "macs": 5e-7, "elements": 1e-5},
    },
    {"overhead_ms": 0.01},
)


def networks() -> list[tuple[Work, ...]]:
    linear = [Work("linear", "float", 64 * index, 16 * index) for index in range(1, 9)]
    convs = [Work("conv", "int8", 16 * i, 16 * j, 9, 64 * j) for i in range(1, 5) for j in range(1, 5)]
    return [(item,) for item in linear] + [(item, linear[index % 8]) for index, item in enumerate(convs)]


def test_fit_when_times_are_of_a_table_then_unseen_networks_are_predicted() -> None:
    found = fit([Sample(works, TRUE.network_ms(works)) for works in networks()])
    unseen = (Work("conv", "int8", 48, 80, 9, 196), Work("linear", "float", 300, 100))
    assert found.network_ms(unseen) == pytest.approx(TRUE.network_ms(unseen), rel=0.02)
    assert all(value >= 0 for row in found.coefficients.values() for value in row.values())


def test_fit_when_pairs_saturate_then_full_eight_bits_have_a_class_of_their_own() -> None:
    samples = [Sample((Work("conv", "uint8", 16 * i, 16, 9, 64),), 0.1 * i) for i in range(1, 9)]
    assert {*fit(samples).coefficients} == {"conv.int8.window.blocked"}
    found = fit(samples, saturating=True)
    assert ({*found.coefficients}, found.saturating) == ({"conv.uint8.window"}, True)
    assert corrected(found, samples).saturating


def test_features_when_a_class_occurs_twice_then_added() -> None:
    work = Work("add", "int8", 1, 8, kernel=1, positions=4)
    assert features([work, work]) == {
        ("", "overhead_ms"): 1.0,
        ("add.int8", "calls"): 2.0,
        ("add.int8", "elements"): 64.0,
        ("add.int8", "reads"): 64.0,
        ("add.int8", "spilled"): 0.0,
    }


def test_corrected_when_whole_networks_are_slower_then_slopes_follow() -> None:
    samples = [Sample(works, 0.01 + 1.5 * (TRUE.network_ms(works) - 0.01)) for works in networks()]
    found = corrected(TRUE, samples, prior=1e-3)
    assert found.correction["int8"] == pytest.approx(1.5, rel=0.01)
    assert found.correction["float"] == pytest.approx(1.5, rel=0.01)
    assert found.overhead_ms == pytest.approx(0.01, rel=0.05)
    assert corrected(TRUE, []) is TRUE

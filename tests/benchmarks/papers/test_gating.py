"""The part of channel gates: what is claimed, of what was measured and of what was not."""

from __future__ import annotations

from typing import Any

from benchmarks.papers import gating


def found(error: float, mean: float, variance: float | None = None) -> dict[str, Any]:
    item: dict[str, Any] = {"error": error, "macs": {"mean": mean, "p95": mean, "largest": mean}}
    if variance is not None:
        item |= {"gates": 4, "variance": variance, "latency_ms": {"masked": 2.0, "ungated": 1.5, "float": 3.0}}
    return item


def test_claims_when_nothing_is_measured_then_open() -> None:
    assert [claim.holds for claim in gating.claims({})] == [None, None]
    assert len(gating.rows({})) == 1


def test_claims_when_measured_then_judged_by_error_at_equal_macs_and_by_spread() -> None:
    errors = {"gated": (25.0, 26.0, 25.5), "static": (25.5, 25.4, 26.2)}
    good = {f"gated-{seed}": found(errors["gated"][seed], 0.6, 0.2) for seed in range(3)}
    good |= {f"static-{seed}": found(errors["static"][seed], 0.6) for seed in range(3)}
    good["unshaped"] = found(26.0, 0.6, 0.1)
    claims = gating.claims(good)
    assert [claim.holds for claim in claims] == [True, True]
    assert claims[0].figures == "+0.20 points (+0.50, -0.60, +0.70), +0.0 % MACs"
    bad = {**good, "gated-1": found(27.0, 0.6, 0.2), "gated-0": found(25.0, 0.6, 0.1)}
    assert [claim.holds for claim in gating.claims(bad)] == [False, False]
    wide = {**good, "gated-1": found(26.0, 0.65, 0.2)}
    assert [claim.holds for claim in gating.claims(wide)] == [False, True]
    assert gating.rows(good)[1] == ["gated-0", "25.00 %", "60.0 %", "60.0 %", "4", "0.200", "2.000, -, 1.500, 3.000"]
    assert gating.rows(good)[4][4:] == ["-", "-", "-"]


def test_claims_when_seeds_are_missing_then_of_those_that_both_have() -> None:
    some = {"gated-0": found(25.0, 0.6, 0.2), "static-0": found(25.5, 0.6), "gated-1": found(27.0, 0.6, 0.2)}
    accurate, shaped = gating.claims(some)
    assert (accurate.holds, accurate.figures) == (True, "+0.50 points (+0.50), +0.0 % MACs")
    assert shaped.holds is None

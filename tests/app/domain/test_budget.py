"""Limits, violations, bounds."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.domain.budget import Budget, Limit, reach, resolve, table
from app.domain.cost import METRICS, count
from app.domain.space import build_space, cheapest, widest
from tests.app.domain.drawings import profile, skip, two_convs


def test_resolve_when_limits_are_relative_then_fractions_of_the_reference() -> None:
    graph, device = two_convs(), profile()
    limits = (Limit("bops", relative=0.0625), Limit("weight_bytes", max=3000), Limit("macs", relative=0.5))
    budget = resolve(limits, graph, device)
    w8a8 = count(graph, widest(graph, 8), device)
    # the W8A8 reference counts every activation, the input included, at 8 bits
    assert budget.limits == {"bops": w8a8.bops / 16, "weight_bytes": 3000, "macs": w8a8.macs / 2}
    of_float = resolve((Limit("bops", relative=1 / 256, relative_to="float"),), graph, device)
    assert of_float.limits["bops"] == w8a8.bops / 16


@pytest.mark.parametrize("order", [1, -1])
def test_resolve_when_a_metric_is_limited_twice_then_the_tighter_wins(order: int) -> None:
    limits = (Limit("macs", max=10), Limit("macs", max=7))[::order]
    assert resolve(limits, two_convs(), profile()).limits == {"macs": 7}
    both = Limit("macs", max=10**9, relative=0.5)
    assert resolve((both,), two_convs(), profile()).limits["macs"] == pytest.approx((442_368 + 1_179_648) / 2)


def test_violation_when_limits_are_broken_then_relative_excess_is_summed() -> None:
    costs = count(two_convs(), widest(two_convs(), 8), profile())
    budget = Budget({"macs": costs.macs / 2, "bops": costs.bops / 1.5, "weight_bytes": costs.weight_bytes})
    assert budget.violations(costs) == pytest.approx({"macs": 1.0, "bops": 0.5, "weight_bytes": 0.0})
    assert budget.violation(costs) == pytest.approx(1.5)
    assert not budget.is_met(costs)
    assert Budget({"weight_bytes": costs.weight_bytes}).is_met(costs)


@given(st.dictionaries(st.sampled_from(METRICS), st.floats(1e-6, 1e12), max_size=6))
def test_violation_when_zero_then_and_only_then_the_budget_is_met(limits: dict[str, float]) -> None:
    costs = count(two_convs(), widest(two_convs(), 8), profile())
    budget = Budget(limits)
    assert budget.is_met(costs) == (budget.violation(costs) == 0)


def test_reach_when_a_limit_lies_below_the_cheapest_then_it_is_named() -> None:
    graph, device = skip(), profile()
    space = build_space(graph, device)
    floor = count(graph, cheapest(graph, space), device)
    found = reach(graph, space, device, Budget({"bops": floor.bops, "weight_bytes": floor.weight_bytes - 1}))
    assert found.smallest == {"bops": floor.bops, "weight_bytes": floor.weight_bytes}
    assert found.unreachable == ("weight_bytes",)
    assert not found.feasible


def test_table_when_written_then_limit_value_slack_and_evidence() -> None:
    rows = table(
        Budget({"macs": 100.0, "latency_ms": 2.0}), {"macs": 90, "latency_ms": 2.5}, {"latency_ms": "measured"}
    )
    assert [row.to_json() for row in rows] == [
        {"metric": "macs", "limit": 100.0, "value": 90, "slack": 10.0, "evidence": "modelled", "met": True},
        {"metric": "latency_ms", "limit": 2.0, "value": 2.5, "slack": -0.5, "evidence": "measured", "met": False},
    ]

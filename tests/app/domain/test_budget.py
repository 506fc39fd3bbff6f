"""Limits, violations, bounds."""

from __future__ import annotations

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from app.domain.budget import Budget, Limit, reach, resolve, table
from app.domain.cost import METRICS, count
from app.domain.device import DeviceProfile, MemoryPool
from app.domain.space import build_space, cheapest, widest
from tests.app.domain.drawings import profile, skip, two_convs
from tests.app.domain.random_graphs import assignments, devices, networks


def roomy() -> DeviceProfile:
    return profile(activation_pool=MemoryPool(None, 1.0))


def test_resolve_when_limits_are_relative_then_fractions_of_the_reference() -> None:
    graph, device = two_convs(), roomy()
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
    assert resolve(limits, two_convs(), roomy()).limits == {"macs": 7}
    both = Limit("macs", max=10**9, relative=0.5)
    assert resolve((both,), two_convs(), roomy()).limits["macs"] == pytest.approx((442_368 + 1_179_648) / 2)


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
        {
            "metric": "macs",
            "limit": 100.0,
            "value": 90,
            "slack": 10.0,
            "evidence": "modelled",
            "met": True,
            "origin": "request",
        },
        {
            "metric": "latency_ms",
            "limit": 2.0,
            "value": 2.5,
            "slack": -0.5,
            "evidence": "measured",
            "met": False,
            "origin": "request",
        },
    ]  # fmt: skip


def test_resolve_when_the_device_has_no_more_room_then_its_capacity_is_a_limit_unless_the_users_is_tighter() -> None:
    device = profile(activation_pool=MemoryPool(20_000, 1.0), weight_store=MemoryPool(4_000, 0.5))
    budget = resolve((Limit("weight_bytes", max=3_000), Limit("peak_activation_bytes", max=1e6)), two_convs(), device)
    assert budget.limits == {"weight_bytes": 3_000, "peak_activation_bytes": 20_000}
    rows = table(budget, {"weight_bytes": 1, "peak_activation_bytes": 2}, {}, device)
    assert {row.metric: row.origin for row in rows} == {"weight_bytes": "request", "peak_activation_bytes": "device"}


def test_reach_when_a_network_never_fits_a_pool_then_that_pool_is_named() -> None:
    graph, device = two_convs(), profile(activation_pool=MemoryPool(2_000, 1.0))
    budget = resolve((Limit("macs", max=1e9),), graph, device)
    found = reach(graph, build_space(graph, device), device, budget)
    assert found.unreachable == ("peak_activation_bytes",)  # the picture alone: 3 x 1024 bytes
    assert found.smallest["peak_activation_bytes"] >= 3072


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_reach_when_compared_with_any_legal_assignment_then_never_above_it(data: st.DataObject) -> None:
    (graph, _), device = data.draw(networks()), data.draw(devices())
    space = build_space(graph, device)
    one = data.draw(assignments(space))
    pairs = [(one.weight_bits[x.name], one.activation_bits[x.input]) in space.pairs[x.name] for x in graph.layers]
    assume(all(pairs))
    costs, found = count(graph, one, device), reach(graph, space, device, Budget(dict.fromkeys(METRICS, 1.0)))
    for metric in METRICS:
        assert found.smallest[metric] <= costs.value(metric) * (1 + 1e-12), metric

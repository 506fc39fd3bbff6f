"""Limits that can't be kept together: proofs are never wrong, the nearest budget is one that an assignment keeps."""

from __future__ import annotations

import time
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app.domain.budget import Budget, reach
from app.domain.cost import METRICS, count
from app.domain.device import DeviceProfile, Throughput
from app.domain.graph import ModelGraph
from app.domain.nearest import cheapest_legal, nearest
from app.domain.space import SearchSpace, build_space, cheapest
from tests.app.domain.random_graphs import assignments, devices, networks
from tests.worker.search.pictures import device, resnet


def slow_in_few_bits() -> DeviceProfile:
    rates = (Throughput(8, 8, 8.0, {"default": 1.0}), Throughput(4, 8, 0.5, {"default": 1.0}))
    return replace(device(((8, 8), (4, 8))), compute=rates)


def conflict(blocks: int = 1) -> tuple[ModelGraph, SearchSpace, DeviceProfile, dict[str, float]]:
    """Limits that can each be kept: the bytes of 4-bit weights, and the time of 8-bit ones."""
    graph, profile = resnet(blocks=blocks), slow_in_few_bits()
    space = build_space(graph, profile)
    low = cheapest(graph, space)
    few = count(graph, low, profile)
    fast = count(graph, replace(low, weight_bits=dict.fromkeys(low.weight_bits, 8)), profile)
    assert fast.latency_ms < few.latency_ms and few.weight_bytes < fast.weight_bytes
    return graph, space, profile, {"latency_ms": fast.latency_ms * 1.01, "weight_bytes": few.weight_bytes * 1.01}


def test_limits_when_each_can_be_kept_but_not_both_then_both_bind_and_the_nearest_is_kept() -> None:
    graph, space, profile, limits = conflict()
    for metric, limit in limits.items():
        assert reach(graph, space, profile, Budget({metric: limit})).feasible
    found = reach(graph, space, profile, Budget(limits))
    assert (found.unreachable, found.conflicting) == ((), ("latency_ms", "weight_bytes"))
    assert not found.feasible
    assert found.nearest is not None
    assert all(found.nearest[metric] >= limit for metric, limit in limits.items())
    assert reach(graph, space, profile, Budget(found.nearest)).feasible
    near = nearest(graph, space, profile, limits)
    assert Budget(found.nearest).is_met(count(graph, near.assignment, profile))
    assert near.excess < Budget(limits).violation(count(graph, cheapest(graph, space), profile))


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_limits_when_an_assignment_keeps_them_then_they_are_not_refused(data: st.DataObject) -> None:
    (graph, _), profile = data.draw(networks()), data.draw(devices())
    space = build_space(graph, profile)
    one = data.draw(assignments(space))
    weights = {
        layer.name: next(
            w for w in (one.weight_bits[layer.name], *space.weight_bits[layer.name])
             if (w, one.activation_bits[layer.input]) in space.pairs[layer.name]
        )
        for layer in graph.layers
    }  # fmt: skip
    costs = count(graph, replace(one, weight_bits=weights), profile)
    names = data.draw(st.sets(st.sampled_from(METRICS), min_size=1))
    found = reach(graph, space, profile, Budget({name: costs.value(name) * (1 + 1e-9) for name in names}))
    assert found.feasible, found
    if found.nearest is not None:
        assert all(value >= costs.value(name) for name, value in found.nearest.items())


@settings(max_examples=30, deadline=None)
@given(st.data())
def test_nearest_when_any_limits_are_given_then_a_legal_assignment_costs_it(data: st.DataObject) -> None:
    (graph, _), profile = data.draw(networks()), data.draw(devices())
    space = build_space(graph, profile)
    floor = count(graph, cheapest_legal(graph, space), profile)
    limits = {m: floor.value(m) * data.draw(st.floats(0.3, 1.5)) for m in ("latency_ms", "weight_bytes", "bops")}
    near = nearest(graph, space, profile, limits)
    assert near.costs == count(graph, near.assignment, profile)
    assert near.excess == pytest.approx(Budget(limits).violation(near.costs))
    assert near.excess <= Budget(limits).violation(floor) + 1e-9
    for layer in graph.layers:
        pair = near.assignment.weight_bits[layer.name], near.assignment.activation_bits[layer.input]
        assert pair in space.pairs[layer.name]


def test_refusal_when_the_network_has_more_than_fifty_layers_then_within_two_seconds() -> None:
    graph, space, profile, limits = conflict(blocks=9)
    assert len(graph.layers) > 50
    start = time.process_time()
    assert not reach(graph, space, profile, Budget({**limits, "peak_activation_bytes": 1e9, "bops": 1e12})).feasible
    assert time.process_time() - start < 2.0


def test_limits_when_a_metric_is_free_then_it_binds_nothing() -> None:
    graph, space, profile, limits = conflict()
    found = reach(graph, space, profile, Budget({**limits, "latency_ms": 1e-9}), free=("latency_ms",))
    assert found.feasible
    assert found.smallest["latency_ms"] > 1e-9

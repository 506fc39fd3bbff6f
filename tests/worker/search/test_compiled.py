"""The compiled costs against the domain's formulas."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from app.domain.cost import METRICS, count
from app.domain.demand import float_only
from app.domain.device import DeviceProfile
from app.domain.graph import ModelGraph
from app.domain.latency import LatencyTable
from app.domain.space import SpaceSpec, build_space
from tests.app.domain.random_graphs import BUILT_IN, TABLE, assignments, built_in, devices, networks
from tests.worker.search.pictures import chain, device, resnet, skipped
from worker.search.compiled import CompiledCosts
from worker.search.tabled import reference


def assert_counts_equal(graph: ModelGraph, profile: DeviceProfile, states: int, rel: float) -> None:
    """Hold the arrays' figures of random states against the domain's."""
    compiled = CompiledCosts(graph, build_space(graph, profile), profile)
    rng = np.random.default_rng(1)
    drawn = np.array([[rng.integers(size) for size in compiled.sizes] for _ in range(states)])
    found = compiled.costs(drawn)
    for index, state in enumerate(drawn):
        expected = count(graph, compiled.assignment(state), profile)
        for metric in METRICS:
            assert found[metric][index] == pytest.approx(expected.value(metric), rel=rel), metric


@pytest.mark.parametrize("draw", [resnet, chain, skipped, lambda: resnet(blocks=3)])
@pytest.mark.parametrize("multiple", [1, 8])
def test_costs_when_counted_in_batches_then_equal_the_domain(draw: Callable[[], ModelGraph], multiple: int) -> None:
    graph, profile = draw(), device(multiple=multiple)
    assert_counts_equal(graph, profile, 40, rel=1e-12)


@settings(max_examples=120, deadline=None)
@given(st.data())
def test_costs_when_a_random_network_has_steps_and_the_device_every_cost_then_equal_the_domain(
    data: st.DataObject,
) -> None:
    (graph, _), profile = data.draw(networks()), data.draw(devices())
    space = build_space(graph, profile)
    compiled = CompiledCosts(graph, space, profile)
    one = data.draw(assignments(space))
    assume(compiled.is_exact)
    found, expected = compiled.costs(compiled.state(one)[None]), count(graph, one, profile)
    for metric in METRICS:
        assert found[metric][0] == pytest.approx(expected.value(metric), rel=1e-11), metric


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_times_when_a_table_estimates_mixed_bits_then_close_to_the_exact_count(data: st.DataObject) -> None:
    (graph, _), profile = data.draw(networks()), device(multiple=4)
    profile = replace(profile, table=TABLE)
    space = build_space(graph, profile)
    compiled = CompiledCosts(graph, space, profile)
    one = data.draw(assignments(space))
    assert not compiled.is_exact
    found, expected = compiled.costs(compiled.state(one)[None]), count(graph, one, profile)
    assert found["latency_ms"][0] == pytest.approx(expected.latency_ms, rel=0.25)
    assert found["macs"][0] == expected.macs


@pytest.mark.parametrize("draw", [resnet, chain])
def test_times_when_a_table_is_asked_for_a_network_of_eight_bits_then_exact(draw: Callable[[], ModelGraph]) -> None:
    graph, profile = draw(), replace(device(multiple=4), table=TABLE)
    compiled = CompiledCosts(graph, build_space(graph, profile), profile)
    rng = np.random.default_rng(4)
    for _ in range(12):
        one = compiled.assignment(np.array([rng.integers(size) for size in compiled.sizes]))
        one = replace(one, activation_bits=reference(graph, one.keep).activation_bits)
        found = compiled.costs(compiled.state(one)[None])["latency_ms"][0]
        assert found == pytest.approx(count(graph, one, profile).latency_ms, rel=1e-11)


@pytest.mark.parametrize("draw", [resnet, chain])
def test_times_when_a_table_knows_floats_and_reordering_is_free_then_exact(draw: Callable[[], ModelGraph]) -> None:
    products = {"calls": 2e-3, "macs": 3e-8, "reads": 1e-7, "elements": 4e-8}
    kinds = [f"conv.float.{shape}.{way}" for shape in ("window", "pointwise") for way in ("direct", "blocked", "odd")]
    rows = dict.fromkeys([*kinds, "linear.float", "fused_add.float", "mean.float", "max_pool2d.float"], products)
    table = LatencyTable({**rows, "reorder.float": {"calls": 0.0}}, {"overhead_ms": 0.01})
    graph, profile = draw(), replace(float_only(device()), table=table)
    compiled = CompiledCosts(graph, build_space(graph, profile), profile)
    rng = np.random.default_rng(4)
    drawn = np.array([[rng.integers(size) for size in compiled.sizes] for _ in range(12)])
    found = compiled.costs(drawn)["latency_ms"]
    expected = [count(graph, compiled.assignment(state), profile).latency_ms for state in drawn]
    assert found.tolist() == pytest.approx(expected, rel=1e-11)
    assert len(set(expected)) > 6


@pytest.mark.parametrize("name", BUILT_IN)
@pytest.mark.parametrize("draw", [resnet, skipped])
def test_costs_when_the_device_is_built_in_then_equal_the_domain(name: str, draw: Callable[[], ModelGraph]) -> None:
    graph, profile = draw(), built_in(name)
    assert_counts_equal(graph, profile, 10, rel=1e-11)


def test_state_when_turned_into_an_assignment_and_back_then_is_the_same() -> None:
    graph, profile = resnet(), device()
    compiled = CompiledCosts(graph, build_space(graph, profile), profile)
    state = compiled.sizes - 1
    assert (compiled.state(compiled.assignment(state)) == state).all()


def test_legality_when_pairs_are_restricted_then_only_those_pass() -> None:
    graph, profile = chain(), device(pairs=((8, 8), (4, 4)))
    space = build_space(graph, profile, SpaceSpec(prune=False))
    compiled = CompiledCosts(graph, space, profile)
    rng = np.random.default_rng(2)
    states = np.array([[rng.integers(size) for size in compiled.sizes] for _ in range(60)])
    for state, legal in zip(states, compiled.is_legal(states), strict=True):
        one = compiled.assignment(state)
        bits = [(one.weight_bits[x.name], one.activation_bits[x.input]) in space.pairs[x.name] for x in graph.layers]
        assert legal == all(bits)


def test_live_sets_when_a_skip_is_open_then_it_counts_beside_the_inner_tensors() -> None:
    graph, profile = skipped(), device()
    compiled = CompiledCosts(graph, build_space(graph, profile), profile)
    names = [item.id for item in graph.activations]
    sets = {frozenset(n for n, on in zip(names, row, strict=True) if on) for row in compiled.live_sets()}
    assert frozenset({"first", "inner", "outer"}) in sets
    assert frozenset({"first", "inner"}) not in sets

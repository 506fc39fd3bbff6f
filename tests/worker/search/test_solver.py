"""The allocation against brute force, on realistic sizes, and in corners."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app.domain.budget import Budget, Limit, reach, resolve
from app.domain.cost import METRICS, count
from app.domain.device import MemoryPool, Power
from app.domain.graph import ModelGraph
from app.domain.space import Assignment, SearchSpace, SpaceSpec, build_space, cheapest, multiple_violations, widest
from tests.app.domain.random_graphs import BUILT_IN, TABLE, built_in, devices, networks
from tests.worker.search.pictures import PAIRS, Drawing, chain, device, random_table, resnet, skipped
from worker.search.descent import Descent
from worker.search.sensitivity import SensitivityTable
from worker.search.solver import Solver, allocate

PAIR_RULES = (PAIRS, ((8, 8), (4, 8), (4, 4), (2, 4)), ((8, 8), (4, 4)))
FOUR_LIMITS = (
    Limit("bops", relative=1 / 8),
    Limit("weight_bytes", relative=0.3),
    Limit("peak_activation_bytes", relative=0.6),
    Limit("latency_ms", relative=0.4),
)


def small_case(seed: int) -> tuple[Solver, Budget, SensitivityTable]:
    """Draw a network small enough to enumerate, one to four limits anywhere between cheapest and widest, a table."""
    rng = np.random.default_rng(seed)
    graph = chain((8, 12)) if rng.random() < 0.5 else skipped()
    profile = device(PAIR_RULES[rng.integers(3)], int(rng.choice([1, 4])))
    space = thinned(build_space(graph, profile, SpaceSpec(min_keep=0.25)))
    solver = Solver(graph, space, profile)
    low = solver.costs.costs((solver.costs.sizes - 1)[None])
    high = solver.costs.costs(np.zeros((1, len(solver.costs.sizes)), dtype=np.intp))
    limited = rng.choice(METRICS, size=rng.integers(1, 5), replace=False)
    limits = {str(m): float(low[m][0] + (high[m][0] - low[m][0]) * rng.uniform(0, 0.7)) for m in limited}
    return solver, Budget(limits), random_table(space, seed)


def thinned(space: SearchSpace) -> SearchSpace:
    keep = {n: c if len(c) < 3 else (c[0], c[len(c) // 2], c[-1]) for n, c in space.keep.items()}
    return SearchSpace(keep, space.weight_bits, space.activation_bits, space.pairs)


def brute_force(descent: Descent) -> float | None:
    states = np.array(list(itertools.product(*[range(size) for size in descent.costs.sizes])))
    allowed = descent.fits(descent.ratios(states)) & descent.costs.is_legal(states)
    return float(descent.loss(states[allowed]).min()) if allowed.any() else None


def is_legal(graph: ModelGraph, space: SearchSpace, one: Assignment) -> bool:
    pairs = {x.name: (one.weight_bits[x.name], one.activation_bits[x.input]) for x in graph.layers}
    inside = all(one.keep[name] in options for name, options in space.keep.items())
    return inside and all(pair in space.pairs[name] for name, pair in pairs.items())


def test_allocation_when_compared_with_brute_force_then_stays_within_five_percent_on_average() -> None:
    gaps = []
    for seed in range(60):
        solver, budget, table = small_case(seed)
        descent = Descent(solver.costs, budget, table, {})
        best, found = brute_force(descent), solver.solve(budget, table)
        assert (best is None) == (found is None), seed
        if best is not None and found is not None:
            loss = float(descent.loss(solver.costs.state(found)[None])[0])
            assert loss >= best - 1e-9
            gaps.append(loss / max(best, 1e-3) - 1)
    assert len(gaps) > 50
    assert float(np.mean(gaps)) < 0.05
    assert float(np.mean(np.array(gaps) < 1e-6)) > 0.85


@settings(max_examples=30, deadline=None)
@given(st.integers(1000, 10**6))
def test_allocation_when_a_feasible_assignment_exists_then_a_feasible_legal_one_is_returned(seed: int) -> None:
    solver, budget, table = small_case(seed)
    costs, graph = solver.costs, solver.costs.graph
    found = solver.solve(budget, table)
    if found is not None:
        assert budget.is_met(count(graph, found, costs.device))
        assert is_legal(graph, costs.space, found)
        return
    floor = cheapest(graph, costs.space)
    feasible = budget.is_met(count(graph, floor, costs.device))
    assert not (feasible and is_legal(graph, costs.space, floor))


@settings(max_examples=8, deadline=None)
@given(st.integers(0, 10**6), st.floats(0.0, 1.0))
def test_allocation_when_the_limits_lie_at_or_above_the_floor_then_resnet_is_fitted(seed: int, height: float) -> None:
    graph, profile = resnet(), device()
    space = build_space(graph, profile)
    solver = Solver(graph, space, profile)
    low = count(graph, cheapest(graph, space), profile)
    budget = Budget({metric: low.value(metric) * (1 + height) for metric in METRICS})
    assert reach(graph, space, profile, budget).feasible
    found = solver.solve(budget, random_table(space, seed))
    assert found is not None
    assert budget.is_met(count(graph, found, profile))


def test_allocation_when_nothing_is_limited_then_nothing_is_compressed() -> None:
    graph, profile = resnet(), device()
    space = build_space(graph, profile)
    found = allocate(graph, space, profile, Budget({}), random_table(space))
    assert found is not None
    assert set(found.weight_bits.values()) == {8}
    assert found.keep == {group.id: group.channels for group in graph.groups}


def test_allocation_when_the_budget_is_below_the_floor_then_none_and_the_least_violating_is_near_the_floor() -> None:
    graph, profile = resnet(), device()
    space = build_space(graph, profile)
    solver = Solver(graph, space, profile)
    floor = float(solver.costs.costs((solver.costs.sizes - 1)[None])["bops"][0])
    budget, table = Budget({"bops": floor * 0.9}), random_table(space)
    assert solver.solve(budget, table) is None
    least = solver.least_violating(budget, table)
    assert budget.violation(count(graph, least, profile)) == pytest.approx(1 / 0.9 - 1)


def test_allocation_when_the_budget_grows_then_the_loss_does_not() -> None:
    graph, profile = resnet(), device()
    space = build_space(graph, profile)
    solver, table = Solver(graph, space, profile), random_table(space, 2)
    losses = []
    for relative in (1 / 48, 1 / 32, 1 / 16, 1 / 8, 1 / 4, 1 / 2):
        found = solver.solve(resolve((Limit("bops", relative=relative),), graph, profile), table)
        assert found is not None
        losses.append(table.loss(found))
    assert all(later <= earlier * 1.001 for earlier, later in itertools.pairwise(losses))


def test_allocation_when_a_multiplier_protects_a_group_then_it_keeps_more() -> None:
    graph, profile = resnet(), device()
    space = build_space(graph, profile)
    solver, table = Solver(graph, space, profile), random_table(space, 4)
    budget = resolve((Limit("bops", relative=1 / 24),), graph, profile)
    plain = solver.solve(budget, table)
    guarded = solver.solve(budget, table, {f"keep:{group.id}": 1e4 for group in graph.groups})
    assert plain is not None and guarded is not None
    assert sum(guarded.keep.values()) > sum(plain.keep.values())


@settings(max_examples=25, deadline=None)
@given(st.data())
def test_allocation_when_the_device_has_multiples_then_none_is_broken_and_every_limit_kept(data: st.DataObject) -> None:
    (graph, _), profile = data.draw(networks()), data.draw(devices())
    space = build_space(graph, profile)
    solver = Solver(graph, space, profile)
    low, high = count(graph, cheapest(graph, space), profile), count(graph, widest(graph, 8), profile)
    height = data.draw(st.floats(0.05, 0.9))
    names = data.draw(st.sets(st.sampled_from(METRICS), min_size=1))
    budget = Budget({n: low.value(n) + height * max(0.0, high.value(n) - low.value(n)) for n in names})
    for one in (solver.solve(budget, random_table(space)), solver.least_violating(budget, random_table(space))):
        assert one is None or multiple_violations(graph, one, profile) == []
    found = solver.solve(budget, random_table(space))
    assert found is None or budget.is_met(count(graph, found, profile))


def odd(widths: tuple[int, ...] = (33, 17, 65)) -> ModelGraph:
    draw = Drawing(3, 16)
    last = "input"
    for index, width in enumerate(widths):
        last = draw.conv(f"conv{index}", last, (f"g{index}", width), 16)
    return draw.finish(draw.linear("head", last, ("g_head", 10)), frozen=("g_head",))


@pytest.mark.parametrize("name", BUILT_IN)
def test_allocation_when_channels_are_odd_then_not_modelled_slower_than_before(name: str) -> None:
    graph, profile = odd(), built_in(name)
    space = build_space(graph, profile)
    table, whole = random_table(space), {group.id: group.channels for group in graph.groups}
    picks = (space.keep, space.weight_bits, space.activation_bits)
    full = count(graph, Assignment(*({name: options[0] for name, options in part.items()} for part in picks)), profile)
    low = count(graph, cheapest(graph, space), profile)
    for metric in ("latency_ms", "macs", "weight_bytes"):
        limit = Limit(metric, max=low.value(metric) + 0.8 * max(0.0, full.value(metric) - low.value(metric)))
        found = Solver(graph, space, profile).solve(resolve((limit,), graph, profile), table)
        assert found is not None, limit
        unpruned = count(graph, replace(found, keep=whole), profile)
        assert count(graph, found, profile).latency_ms <= unpruned.latency_ms, limit


def cached(seed: int) -> tuple[Solver, Budget, SensitivityTable]:
    """Draw a small network on a device whose weight cache holds some of its allocations, limited in time."""
    rng = np.random.default_rng(seed)
    graph = chain((8, 12))
    space = thinned(build_space(graph, device(), SpaceSpec(min_keep=0.25)))
    sizes = [count(graph, one, device()).weight_bytes for one in (cheapest(graph, space), widest(graph, 8))]
    room = int(rng.uniform(*sizes))
    profile = replace(
        device(), weight_store=MemoryPool(None, 0.002, room, 2.0), power=Power({"8x8": 1.0}, 1.0, idle_mw=9.0)
    )
    solver = Solver(graph, space, profile)
    low, high = (count(graph, one, profile) for one in (cheapest(graph, space), widest(graph, 8)))
    share = rng.uniform(0.05, 0.8)
    limits = {m: low.value(m) + share * (high.value(m) - low.value(m)) for m in ("latency_ms", "energy_mj")}
    return (
        solver,
        Budget(limits if rng.random() < 0.5 else {"latency_ms": limits["latency_ms"]}),
        random_table(space, seed),
    )


def test_allocation_when_weights_may_overflow_a_cache_then_near_brute_force_with_both_sums_kept() -> None:
    gaps = []
    for seed in range(12):
        solver, budget, table = cached(seed)
        descent = Descent(solver.costs, budget, table, {})
        assert descent.rows == 2 * len(budget.limits)
        best, found = brute_force(descent), solver.solve(budget, table)
        assert found is not None and best is not None
        assert budget.is_met(count(solver.costs.graph, found, solver.costs.device))
        gaps.append(float(descent.loss(solver.costs.state(found)[None])[0]) / max(best, 1e-3) - 1)
    assert min(gaps) > -1e-9
    assert float(np.mean(gaps)) < 0.05


@pytest.mark.parametrize("share", [0.35, 0.5, 0.8])
def test_allocation_when_a_latency_table_limits_time_then_the_exact_count_keeps_it(share: float) -> None:
    graph, profile = resnet(), replace(device(multiple=8), table=TABLE)
    space = build_space(graph, profile)
    low, high = count(graph, cheapest(graph, space), profile), count(graph, widest(graph, 8), profile)
    limit = low.latency_ms + share * (high.latency_ms - low.latency_ms)
    found = allocate(graph, space, profile, Budget({"latency_ms": limit}), random_table(space))
    assert found is not None
    assert 0.5 * limit < count(graph, found, profile).latency_ms <= limit


def test_rows_when_a_limit_is_wider_than_the_widest_network_then_it_is_none() -> None:
    graph, profile = resnet(), device()
    solver = Solver(graph, build_space(graph, profile), profile)
    top = solver.costs.costs(np.zeros((1, len(solver.costs.sizes)), dtype=np.intp))
    wide = {"peak_activation_bytes": float(top["peak_activation_bytes"][0]), "weight_bytes": 1e9}
    budget = resolve((Limit("bops", relative=0.25),), graph, profile)
    assert set(budget.limits) == {"bops", "peak_activation_bytes", "weight_bytes"}  # the device's room among them
    both = Budget({**budget.limits, **wide})
    assert Descent(solver.costs, both, random_table(solver.costs.space), {}).rows == 1
    tight = Budget({**wide, "peak_activation_bytes": wide["peak_activation_bytes"] - 1})
    assert 1 <= Descent(solver.costs, tight, random_table(solver.costs.space), {}).rows < len(solver.costs.live_sets())

"""The proven allocation: against brute force, below every allocation for any prices, in time on deep networks."""

from __future__ import annotations

import itertools
import math
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app.domain.budget import Budget, Limit, reach, resolve
from app.domain.cost import METRICS, count
from app.domain.space import SpaceSpec, build_space, cheapest, widest
from tests.app.domain.random_graphs import devices, networks
from tests.worker.search.pictures import device, random_table, resnet
from tests.worker.search.test_solver import FOUR_LIMITS, brute_force, cached, is_legal, small_case
from worker.search.descent import Descent
from worker.search.elimination import Elimination
from worker.search.factors import Scope
from worker.search.proof import Dual
from worker.search.sensitivity import SensitivityTable
from worker.search.solver import Solver

SCOPES: tuple[Scope, ...] = ((0, 1), (1, 2), (2, 3), (0, 3), (1, 4), (5,))


def assert_optimal(solver: Solver, budget: Budget, table: SensitivityTable) -> None:
    descent = Descent(solver.costs, budget, table, {})
    best, proven = brute_force(descent), solver.prove(budget, table, gap=0.0)
    if best is None:
        assert proven.assignment is None and proven.bound == math.inf
        return
    assert proven.assignment is not None
    assert budget.is_met(count(solver.costs.graph, proven.assignment, solver.costs.device))
    # brute force counts a tilt of 1e-9 of the scale per step of compression
    assert proven.loss - table.base == pytest.approx(best, abs=1e-7 * descent.scale)
    assert proven.loss == pytest.approx(table.loss(proven.assignment))
    assert proven.bound <= proven.loss
    assert proven.gap <= 1e-6


@pytest.mark.parametrize("seed", range(24))
def test_proof_when_every_assignment_can_be_tried_then_the_optimum_is_theirs(seed: int) -> None:
    assert_optimal(*small_case(seed))


@pytest.mark.parametrize("seed", range(6))
def test_proof_when_a_weight_cache_makes_times_of_two_sums_then_the_optimum_is_brute_forces(seed: int) -> None:
    assert_optimal(*cached(seed))


@settings(max_examples=20, deadline=None)
@given(st.data())
def test_proof_when_networks_and_devices_are_any_then_every_limit_is_kept_when_recounted(data: st.DataObject) -> None:
    (graph, _), profile = data.draw(networks()), data.draw(devices())
    space = build_space(graph, profile)
    low, high = count(graph, cheapest(graph, space), profile), count(graph, widest(graph, 8), profile)
    height = data.draw(st.floats(0.0, 0.9))
    names = data.draw(st.sets(st.sampled_from(METRICS), min_size=1))
    budget = Budget({n: low.value(n) + height * max(0.0, high.value(n) - low.value(n)) for n in names})
    solver, table = Solver(graph, space, profile), random_table(space)
    proven, plain = solver.prove(budget, table, within_s=1.0), solver.solve(budget, table)
    if proven.assignment is None:
        assert plain is None
        return
    assert budget.is_met(count(graph, proven.assignment, profile))
    assert is_legal(graph, space, proven.assignment)
    assert proven.bound <= proven.loss
    assert plain is None or proven.loss <= table.loss(plain) + 1e-9
    assert reach(graph, space, profile, budget).feasible


@pytest.mark.parametrize("metric", METRICS)
def test_proof_when_a_limit_is_exactly_what_an_assignment_costs_then_the_optimum_is_no_worse(metric: str) -> None:
    for seed in range(8):
        solver, _, table = small_case(seed)
        graph, profile = solver.costs.graph, solver.costs.device
        floor = cheapest(graph, solver.costs.space)
        if not is_legal(graph, solver.costs.space, floor):
            continue
        limit = Budget({metric: count(graph, floor, profile).value(metric)})
        proven = solver.prove(limit, table, gap=0.0)
        assert proven.assignment is not None
        assert budget_best(solver, limit, table) == pytest.approx(proven.loss - table.base, abs=1e-6)  # the tilt
        assert proven.bound <= proven.loss


def budget_best(solver: Solver, budget: Budget, table: SensitivityTable) -> float:
    """Return the least loss of all assignments, each near the limit counted exactly."""
    descent = Descent(solver.costs, budget, table, {})
    states = np.array(list(itertools.product(*[range(size) for size in solver.costs.sizes])))
    ratios = descent.ratios(states).max(axis=1, initial=0.0)
    states = states[(ratios <= 1 + 1e-9) & solver.costs.is_legal(states)]
    for state in states[np.argsort(descent.loss(states))]:
        if budget.is_met(count(solver.costs.graph, solver.costs.assignment(state), solver.costs.device)):
            return float(descent.loss(state[None])[0])
    return math.inf


def test_bound_when_prices_are_any_then_below_the_optimum() -> None:
    rng = np.random.default_rng(3)
    for seed in range(12):
        solver, budget, table = small_case(seed)
        descent = Descent(solver.costs, budget, table, {})
        best = brute_force(descent)
        dual = Dual(descent)
        for _ in range(5 if best is not None else 0):
            value, _ = dual.at(rng.exponential(descent.scale, descent.rows))
            assert value <= best + 1e-7 * descent.scale


@pytest.mark.parametrize(("blocks", "seconds", "gap"), [(3, 5.0, 0.005), (18, 10.0, 0.02)])
def test_proof_when_the_network_is_deep_then_the_gap_is_small_in_time(blocks: int, seconds: float, gap: float) -> None:
    graph, profile = resnet(blocks=blocks), device()
    space = build_space(graph, profile)
    solver, table = Solver(graph, space, profile), random_table(space, 1)
    budget = resolve(FOUR_LIMITS, graph, profile)
    start = time.process_time()
    proven = solver.prove(budget, table, within_s=4 * seconds, gap=gap)  # the machine may be shared
    assert time.process_time() - start < seconds
    plain = solver.solve(budget, table)
    assert proven.assignment is not None and plain is not None
    assert budget.is_met(count(graph, proven.assignment, profile))
    assert proven.gap <= gap
    assert proven.bound <= proven.loss <= table.loss(plain) + 1e-9


def test_proof_when_the_limit_lies_below_the_floor_then_no_assignment_and_no_bound() -> None:
    graph, profile = resnet(), device()
    space = build_space(graph, profile)
    floor = count(graph, cheapest(graph, space), profile).bops
    proven = Solver(graph, space, profile).prove(Budget({"bops": floor * 0.9}), random_table(space))
    assert (proven.assignment, proven.loss, proven.bound) == (None, math.inf, math.inf)


def test_proof_when_nothing_binds_then_the_widest_with_no_gap() -> None:
    graph, profile = resnet(), device()
    space = build_space(graph, profile)
    budget, table = resolve((Limit("bops", relative=2.0),), graph, profile), random_table(space)
    proven = Solver(graph, space, profile).prove(budget, table)
    assert proven.assignment is not None
    assert set(proven.assignment.weight_bits.values()) == {8}
    assert proven.gap == pytest.approx(0.0, abs=1e-9)


@pytest.mark.parametrize(("share", "kept"), [(1.0, True), (0.99, False)])
def test_proof_when_there_is_nothing_to_choose_then_the_one_assignment_or_none(share: float, kept: bool) -> None:
    graph, profile = resnet(), device(((8, 8),))
    space = build_space(graph, profile, SpaceSpec(prune=False, activation_bits=(8,)))
    only = cheapest(graph, space)
    budget = Budget({"bops": count(graph, only, profile).bops * share})
    proven = Solver(graph, space, profile).prove(budget, random_table(space), gap=0.0)
    assert proven.assignment == (only if kept else None)
    assert proven.gap == (0.0 if kept else math.inf)


def test_elimination_when_tables_overlap_in_a_ring_then_least_and_marginals_are_those_of_the_sum() -> None:
    rng = np.random.default_rng(0)
    sizes = np.array([3, 2, 4, 3, 2, 5], dtype=np.intp)
    for _ in range(20):
        tables = [rng.normal(size=tuple(sizes[list(scope)])) for scope in SCOPES]
        states = np.array(list(itertools.product(*[range(size) for size in sizes])))
        sums = sum(table[tuple(states[:, list(scope)].T)] for table, scope in zip(tables, SCOPES, strict=True))
        elimination = Elimination(sizes, SCOPES)
        least, state = elimination.least(tables, np.zeros(6, dtype=np.intp))
        assert least == pytest.approx(sums.min())
        assert state.tolist() == states[sums.argmin()].tolist()
        for index, marginal in elimination.marginals().items():
            expected = [sums[states[:, index] == choice].min() for choice in range(sizes[index])]
            assert marginal == pytest.approx(expected)

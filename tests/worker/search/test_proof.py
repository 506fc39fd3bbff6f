"""The proven allocation: against brute force, below every allocation for any prices, in time on deep networks."""

from __future__ import annotations

import itertools
import math
import time

import numpy as np
import pytest

from app.domain.budget import Budget, Limit, resolve
from app.domain.cost import count
from app.domain.space import build_space, cheapest
from tests.worker.search.pictures import device, random_table, resnet
from tests.worker.search.test_solver import FOUR_LIMITS, brute_force, cached, small_case
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

"""Moves: inside the budget, a few places from a parent, the promise computed by hand, and worth their trials."""

from __future__ import annotations

import pytest

from app.domain.budget import Budget, Limit, resolve
from app.domain.cost import count
from app.domain.space import Assignment, build_space
from tests.worker.search.pictures import chain, device, random_table, resnet
from tests.worker.search.worlds import World, run
from worker.search.compiled import CompiledCosts
from worker.search.loop import SearchLoop
from worker.search.moves import Moves
from worker.search.refit import Observation
from worker.search.rows import Goal, Settings
from worker.search.solver import Solver


def goal_of(*limits: Limit) -> Goal:
    graph, profile = resnet(), device()
    return Goal(graph, build_space(graph, profile), profile, resolve(limits, graph, profile))


def parents_of(goal: Goal, n: int = 3) -> list[Observation]:
    """Return allocations by random tables, each with a loss of its own."""
    solver = Solver(goal.graph, goal.space, goal.device)
    found = [solver.solve(goal.budget, random_table(goal.space, seed)) for seed in range(n)]
    return [Observation(item, 0.5 + index) for index, item in enumerate(found) if item is not None]


def places(one: Assignment, other: Assignment) -> int:
    """Return in how many choices two assignments differ."""
    parts = ("keep", "weight_bits", "activation_bits")
    return sum(getattr(one, part)[name] != getattr(other, part)[name] for part in parts for name in getattr(one, part))


@pytest.mark.parametrize("seed", range(4))
def test_best_when_several_limits_then_inside_them_and_at_most_four_places_from_a_parent(seed: int) -> None:
    goal = goal_of(Limit("bops", relative=1 / 12), Limit("weight_bytes", relative=0.4))
    parents = parents_of(goal)
    costs = CompiledCosts(goal.graph, goal.space, goal.device)
    table = random_table(goal.space, seed)
    found = Moves(costs, goal.budget, table, parents).best(set(), seed)
    assert found is not None
    assert goal.budget.is_met(count(goal.graph, found, goal.device))
    assert 0 <= min(places(found, item.assignment) for item in parents) <= 4


def test_best_when_one_place_is_free_then_it_is_the_level_with_the_least_predicted_loss() -> None:
    goal = goal_of()
    wide = parents_of(goal, 1)[0]
    costs = CompiledCosts(goal.graph, goal.space, goal.device)
    state = costs.state(wide.assignment)
    state[:] = costs.sizes - 1
    state[costs.groups + costs.layers :] = 0
    parent = Observation(costs.assignment(state), 2.0)
    table = random_table(goal.space, 1)
    found = Moves(costs, Budget({}), table, [parent]).best({parent.assignment.digest}, 0)
    assert found is not None
    single = []
    for index, item in enumerate(costs.coordinates):
        for level in range(max(0, state[index] - 2), state[index]):
            here = table.increment(item.kind, item.name, item.choices[level])
            single.append(here - table.increment(item.kind, item.name, item.choices[state[index]]))
    assert table.loss(found) - table.loss(parent.assignment) <= min(single)


def test_best_when_everything_near_is_known_then_another_one_each_time() -> None:
    goal = goal_of(Limit("bops", relative=1 / 8))
    moves = Moves(
        CompiledCosts(goal.graph, goal.space, goal.device), goal.budget, random_table(goal.space, 2), parents_of(goal)
    )
    known: set[str] = set()
    for _ in range(20):
        found = moves.best(known, 7)
        assert found is not None
        assert found.digest not in known
        known.add(found.digest)


def test_best_when_the_budget_admits_nothing_then_none() -> None:
    goal = goal_of(Limit("bops", relative=1 / 8))
    costs = CompiledCosts(goal.graph, goal.space, goal.device)
    parents = parents_of(goal)
    assert Moves(costs, Budget({"bops": 1.0}), random_table(goal.space, 2), parents).best(set(), 0) is None


def test_loop_when_moves_are_made_then_each_lies_near_one_of_the_best_of_earlier_batches_and_inside_the_budget() -> (
    None
):
    graph, profile = chain(), device()
    budget = resolve((Limit("bops", relative=1 / 16),), graph, profile)
    goal, settings = Goal(graph, build_space(graph, profile), profile, budget), Settings(trials=32, batch=1)
    loop = run(SearchLoop(goal, settings), World(graph, goal.space), 1)
    moved = [row for row in loop.rows if row.kind == "move"]
    assert len(moved) >= 5
    for row in moved:
        before = [item for item in loop.rows[1 : row.idx] if loop.is_feasible(item)]
        parents = sorted(before, key=lambda item: item.metrics["kl"])[: settings.parents]
        assert 1 <= min(places(row.assignment, item.assignment) for item in parents) <= 4
        assert loop.is_feasible(row)


def test_loop_when_moves_are_not_wanted_then_none() -> None:
    graph, profile = chain(), device()
    goal = Goal(graph, build_space(graph, profile), profile, Budget({}))
    loop = run(SearchLoop(goal, Settings(trials=12, move_every=0)), World(graph, goal.space))
    assert {row.kind for row in loop.rows} <= {"baseline", "seed", "sweep", "feedback", "sampled"}

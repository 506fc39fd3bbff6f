"""Targets of a front: where they lie, which come next, how much the points cover."""

from __future__ import annotations

import math

import pytest

from app.domain.budget import Budget, Limit, resolve
from app.domain.cost import Costs
from app.domain.space import build_space
from tests.worker.search.pictures import device, random_table, resnet
from worker.search.frontier import Frontier, Span, Tried, share, span_of, spread
from worker.search.rows import Goal
from worker.search.solver import Solver

BOPS = Span("bops", 100.0, 1600.0)
BYTES = Span("weight_bytes", 10.0, 40.0)


def costs(bops: float, weight_bytes: float = 0.0) -> Costs:
    return Costs(0, int(bops), int(weight_bytes), 0, 0.0, 0.0)


def one_axis() -> Frontier:
    return Frontier(Budget({"bops": 1600.0, "macs": 5.0}), [BOPS])


def test_targets_when_there_is_one_cost_then_two_an_octave_from_the_budget_down_ever_finer() -> None:
    frontier = one_axis()
    limits = [target.limits["bops"] for target in frontier.targets]
    assert limits[:3] == [1600.0, pytest.approx(100.0), pytest.approx(400.0)]
    assert sorted(limits) == pytest.approx([100 * 2 ** (step / 2) for step in range(9)])
    assert {target.limits["macs"] for target in frontier.targets} == {5.0}


def test_targets_when_there_are_two_costs_then_every_pair_of_their_levels() -> None:
    frontier = Frontier(Budget({"bops": 1600.0}), [BOPS, BYTES])
    pairs = {(round(t.limits["bops"]), round(t.limits["weight_bytes"])) for t in frontier.targets}
    assert len(pairs) == len(frontier.targets) == 16
    assert frontier.targets[0].limits == {"bops": 1600.0, "weight_bytes": 40.0}
    assert {b for b, _ in pairs} == {100, 252, 635, 1600}


def test_target_when_the_range_is_empty_then_is_the_budget_alone() -> None:
    frontier = Frontier(Budget({"bops": 100.0}), [Span("bops", 100.0, 100.0)])
    assert [target.limits for target in frontier.targets] == [{"bops": 100.0}]
    assert frontier.aims([], 3, [0]) == (0, 0, 0)


def test_aims_when_one_step_loses_most_then_it_is_tried_first_and_given_up_when_in_vain() -> None:
    frontier = one_axis()
    order = sorted(range(9), key=lambda k: -frontier.targets[k].limits["bops"])
    losses = [0.01, 0.02, 0.03, 0.4, 0.6, 0.7, 0.8, 0.85, 0.9]
    tried = [Tried(loss, costs(frontier.targets[k].limits["bops"]), k) for k, loss in zip(order, losses, strict=True)]
    steep = order[3]
    first = frontier.aims(tried, 4, order)
    assert first[0] == steep
    assert len(set(first)) > 1
    vain = [*tried, *[Tried(2.0, costs(frontier.targets[steep].limits["bops"]), steep)] * 30]
    assert steep not in frontier.aims(vain, 4, order)
    assert frontier.aims([*vain, Tried(0.35, costs(500), steep)], 1, order) == (steep,)
    assert steep not in frontier.aims(tried, 4, [k for k in order if k != steep])


def test_aims_when_trials_fail_then_their_targets_count_them_as_spent() -> None:
    frontier = one_axis()
    known = [Tried(0.5, costs(1600)), Tried(1.0, costs(400))]
    first = frontier.aims(known, 1, range(9))[0]
    failed = [Tried(math.inf, costs(100), first)] * 3
    assert frontier.aims([*known, *failed], 1, range(9))[0] != first


def test_least_when_nothing_lies_inside_a_target_then_none() -> None:
    frontier = one_axis()
    found = frontier.least([Tried(0.5, costs(1000), 0), Tried(0.7, costs(300), 1), Tried(math.inf, costs(100), 2)])
    by_limit = {round(t.limits["bops"]): loss for t, loss in zip(frontier.targets, found, strict=True)}
    assert (by_limit[1600], by_limit[800], by_limit[200]) == (0.5, 0.7, None)


def test_volume_when_worked_by_hand_then_octaves_times_quality() -> None:
    frontier = one_axis()
    half = Tried(math.log(2.0), costs(400))
    assert share(half.loss) == pytest.approx(0.5)
    assert frontier.point(half) == pytest.approx((0.5, 0.5))
    assert frontier.volume([half]) == pytest.approx(0.25)
    assert frontier.volume([half, Tried(0.0, costs(800))]) == pytest.approx(0.25 + 0.5 * 0.25)
    assert frontier.volume([half, Tried(0.0, costs(3200)), Tried(math.inf, costs(100))]) == pytest.approx(0.25)


def test_spread_when_points_lie_on_a_line_then_the_ends_come_before_the_middle() -> None:
    points = [(0.0,), (0.1,), (0.45,), (1.0,), (0.95,)]
    assert spread(points, 3) == [0, 3, 2]
    assert spread(points, 9) == [0, 3, 2, 1, 4]
    assert spread([], 2) == []


def test_span_when_the_cost_is_limited_then_reaches_from_the_floor_to_the_limit_else_to_the_whole_network() -> None:
    graph, profile = resnet(), device()
    space = build_space(graph, profile)
    goal = Goal(graph, space, profile, resolve((Limit("bops", relative=1 / 4),), graph, profile))
    solver, table = Solver(graph, space, profile), random_table(space, 0)
    limited, free = (span_of(metric, goal, solver, table) for metric in ("bops", "weight_bytes"))
    assert limited.high == goal.budget.limits["bops"]
    assert limited.octaves > 2
    assert free.high > 4 * free.low > 0
    assert solver.solve(Budget({"bops": limited.low}), table) is not None

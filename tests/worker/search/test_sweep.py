"""Allocations for many budgets: inside each, distinct, with the accuracy that measured trials had."""

from __future__ import annotations

import pytest

from app.domain.cost import count
from app.domain.floor import least
from app.domain.space import Assignment, widest
from tests.worker.search.test_loop import fresh, small_goal
from tests.worker.search.worlds import run
from worker.search.rows import Settings, TrialRow
from worker.search.sweep import budgets, expected, sweep


def test_sweep_when_trials_are_done_then_distinct_allocations_from_small_to_large() -> None:
    goal = small_goal()
    loop = run(*fresh(goal, Settings(trials=12)))
    low, high = least(goal.graph, goal.space, goal.device), count(goal.graph, widest(goal.graph, 8), goal.device)
    found = sweep(loop, low, high)
    assert len({item.assignment.digest for item in found}) == len(found) >= 5
    for item in found:
        assert item.costs == count(goal.graph, item.assignment, goal.device)
        assert item.loss == pytest.approx(loop.learned().loss(item.assignment))
    ordered = sorted(found, key=lambda item: item.costs.bops)
    assert ordered[0].loss >= ordered[-1].loss
    assert any(goal.budget.is_met(item.costs) for item in found)


def test_sweep_when_there_is_no_time_then_nothing() -> None:
    goal = small_goal()
    loop = run(*fresh(goal, Settings(trials=4)))
    bound = count(goal.graph, widest(goal.graph, 8), goal.device)
    assert sweep(loop, bound, bound, within_s=0.0) == []
    assert len(list(budgets(loop, bound, bound))) > 20


def test_expected_when_losses_are_between_trials_then_monotone_and_none_without_labels() -> None:
    rows = [
        TrialRow(idx, "seed", {}, Assignment({}, {}, {}), state="done", metrics={"kl": kl, "accuracy": accuracy})
        for idx, (kl, accuracy) in enumerate([(0.1, 0.9), (0.2, 0.7), (0.3, 0.8), (0.5, 0.5)])
    ]
    assert expected(rows, 0.1) == pytest.approx(0.9)
    assert expected(rows, 0.25) == pytest.approx(0.75)
    assert expected(rows, 0.4) == pytest.approx(0.625)
    assert expected([], 0.1) is None
    assert expected(rows, 0.25, "miou") is None


def test_expected_when_the_metric_falls_as_networks_get_better_then_it_rises_with_the_loss() -> None:
    rows = [
        TrialRow(idx, "seed", {}, Assignment({}, {}, {}), state="done", metrics={"kl": kl, "mse": mse})
        for idx, (kl, mse) in enumerate([(0.1, 1.0), (0.2, 3.0), (0.3, 2.0), (0.5, 5.0)])
    ]
    assert [expected(rows, loss, "mse") for loss in (0.1, 0.25, 0.4)] == pytest.approx([1.0, 2.5, 3.75])

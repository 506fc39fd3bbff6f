"""The arena and the rivals on a small real network: equal purses, nothing over the budget."""

from __future__ import annotations

import pytest

from app.domain.budget import Limit
from benchmarks.budgets import DEVICE
from benchmarks.networks import available
from benchmarks.search import arena as arenas
from benchmarks.search import ours, rivals
from benchmarks.search.arena import Arena, Scorer, Spent
from benchmarks.search.plan import Target
from benchmarks.search.store import Evaluations

pytestmark = pytest.mark.skipif(not available(), reason="the reference data folder is absent")
NAME = "lenet5bn_mnist"


@pytest.fixture
def arena(tmp_path, monkeypatch):  # type: ignore[no-untyped-def]
    scorer = Scorer(NAME, DEVICE)
    scorer._stored = Evaluations(tmp_path / "evaluations.sqlite")
    monkeypatch.setattr(arenas, "scorer", lambda name, device: scorer)
    return Arena(NAME, Target("bops-16", DEVICE, Limit("bops", relative=1 / 16)), purse=6)


def test_evaluate_when_the_purse_is_empty_then_spent_but_known_ones_stay_free(arena: Arena) -> None:
    found = [item for item in rivals.uniform(arena.goal.graph, arena.goal.space) if arena.share(item) <= 1]
    first = arena.evaluate(found[0])
    for item in found[1:6]:
        arena.evaluate(item)
    with pytest.raises(Spent):
        arena.evaluate(found[6])
    assert arena.evaluate(found[0]) == first
    assert (arena.spent, len(arena.scored)) == (6, 6)


@pytest.mark.parametrize("strategy", [rivals.tpe, rivals.nsga2, rivals.grid])
def test_rival_when_run_then_every_evaluation_is_inside_the_budget(arena: Arena, strategy: arenas.Strategy) -> None:
    with pytest.raises(Spent):
        strategy(arena, 0)
    assert len(arena.scored) == 6
    assert all(item.feasible and arena.goal.budget.is_met(arena.costs(item.assignment)) for item in arena.scored)


def test_greedy_when_it_walks_then_it_ends_inside_the_budget(arena: Arena) -> None:
    arena.purse = 60
    with pytest.raises(Spent):
        rivals.greedy_joint(arena, 0)
    assert any(item.feasible for item in arena.scored)


def test_greedy_when_bits_alone_cannot_reach_the_budget_then_it_says_how_far_it_gets(arena: Arena) -> None:
    arena.purse = 200
    arena.target = Target("bops-64", DEVICE, Limit("bops", relative=1 / 64))
    rivals.greedy(arena, 0)
    assert not any(item.feasible for item in arena.scored)
    assert 1 < arena.smallest < 64


def test_tightfit_when_run_then_its_probes_count(arena: Arena) -> None:
    arena.purse = 50
    ours.tightfit(arena, 0)
    assert 46 < arena.spent <= 50
    assert any(item.feasible for item in arena.scored)

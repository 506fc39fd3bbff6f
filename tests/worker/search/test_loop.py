"""The loop: phases, budget, restarts, finalists, and whether it beats blind search."""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import get_args

import numpy as np
import pytest

from app.domain.budget import Budget, Limit, resolve
from app.domain.candidate import Measurement
from app.domain.cost import count
from app.domain.space import BitRule, SpaceSpec, build_space, is_legal, widest
from tests.worker.search.pictures import chain, device, resnet
from tests.worker.search.worlds import World, probe, run
from worker.search.frontier import Tried
from worker.search.loop import SearchLoop
from worker.search.rows import Goal, Settings, Stop, TrialPlan, TrialRow
from worker.search.sampling import SamplerName


def small_goal(relative: float = 1 / 16) -> Goal:
    graph, profile = chain(), device()
    budget = resolve((Limit("bops", relative=relative),), graph, profile)
    return Goal(graph, build_space(graph, profile), profile, budget)


def resnet_goal(*limits: Limit) -> Goal:
    graph, profile = resnet(), device()
    return Goal(graph, build_space(graph, profile), profile, resolve(limits, graph, profile))


def fresh(goal: Goal, settings: Settings, seed: int = 0) -> tuple[SearchLoop, World]:
    return SearchLoop(goal, settings), World(goal.graph, goal.space, seed)


def test_loop_when_fresh_then_offers_the_baseline_and_waits_for_the_probes() -> None:
    goal = small_goal()
    loop, world = fresh(goal, Settings(trials=10))
    plans = loop.next_trials(5)
    assert [(plan.idx, plan.kind) for plan in plans] == [(0, "baseline")]
    assert plans[0].assignment == widest(goal.graph, 32)
    assert loop.next_trials(5) == []
    with pytest.raises(RuntimeError, match="pending"):
        _ = loop.table
    probe(loop, world)
    assert loop.pending_probes() == []
    assert [plan.kind for plan in loop.next_trials(1)] == ["seed"]


def test_loop_when_run_then_every_trial_but_the_sweep_is_inside_the_budget() -> None:
    goal = resnet_goal(Limit("bops", relative=1 / 16), Limit("weight_bytes", relative=0.3))
    loop, world = fresh(goal, Settings(trials=24, seed=3))
    run(loop, world)
    kinds = [row.kind for row in loop.rows]
    assert len(kinds) == 25
    assert kinds[:2] == ["baseline", "seed"]
    assert {"sweep", "feedback", "sampled"} <= set(kinds)
    for row in loop.rows[1:]:
        if row.kind != "sweep":
            assert goal.budget.is_met(count(goal.graph, row.assignment, goal.device)), row.idx
    assert len({row.assignment.digest for row in loop.rows}) >= 23
    assert loop.progress == (100, 100)


def test_loop_when_the_space_has_rules_then_every_probe_and_trial_obeys_them() -> None:
    graph, profile = resnet(), device()
    spec = SpaceSpec(max_keeps={"*": 0.75}, bits={"head": BitRule(weight=(8,))}, first_last=4)
    budget = resolve((Limit("bops", relative=1 / 8),), graph, profile)
    goal = Goal(graph, build_space(graph, profile, spec), profile, budget)
    loop, world = fresh(goal, Settings(trials=16, seed=3))
    probed = [item.assignment for item in loop.pending_probes()]
    run(loop, world)
    tried = [row.assignment for row in loop.rows[1:]]
    assert len(tried) == 16
    assert all(is_legal(graph, goal.space, item, profile) for item in (*probed, *tried))
    free = [group for group in graph.groups if group.frozen is None]
    assert max(item.keep[group.id] / group.channels for item in (*probed, *tried) for group in free) == 0.75
    assert {item.weight_bits["head"] for item in tried} == {8}
    assert min(item.weight_bits[graph.layers[0].name] for item in tried) >= 4
    assert loop.finalists(1)[0].metrics["kl"] > 0


@pytest.mark.parametrize("sampler", get_args(SamplerName))
def test_loop_when_cut_at_any_batch_and_rebuilt_then_the_trials_are_the_same(sampler: SamplerName) -> None:
    goal, settings = small_goal(), Settings(trials=20, seed=5, sampler=sampler, batch=3)
    loop, world = fresh(goal, settings)
    run(loop, world)
    for cut in (1, 9, 14):
        again = SearchLoop.from_rows(goal, settings, loop.rows[:cut], loop._measured)
        assert run(again, world).rows == loop.rows


def test_loop_when_killed_with_trials_in_flight_then_they_are_handed_out_again_unchanged() -> None:
    goal, settings = small_goal(), Settings(trials=16, batch=4)
    loop, world = fresh(goal, settings)
    probe(loop, world)
    told = 0
    while told < 12:
        for plan in loop.next_trials(4):
            loop.tell(plan.idx, world.measure(plan.assignment))
            told += 1
    in_flight = loop.next_trials(4)
    loop.tell(in_flight[1].idx, world.measure(in_flight[1].assignment))
    lost = [plan for plan in in_flight if plan is not in_flight[1]]
    again = SearchLoop.from_rows(goal, settings, loop.rows, loop._measured)
    assert again.next_trials(8)[: len(lost)] == lost
    only_done = [row for row in loop.rows if row.state == "done"]
    never_stored = SearchLoop.from_rows(goal, settings, only_done, loop._measured)
    assert never_stored.next_trials(8)[: len(lost)] == lost


def test_loop_when_results_arrive_in_another_order_then_the_next_batch_is_the_same() -> None:
    goal, settings = small_goal(), Settings(trials=16, batch=4)
    ends = []
    for step in (1, -1):
        loop, world = fresh(goal, settings)
        probe(loop, world)
        while not loop.is_done:
            for plan in loop.next_trials(4)[::step]:
                loop.tell(plan.idx, world.measure(plan.assignment))
        ends.append(loop.rows)
    assert ends[0] == ends[1]


def test_loop_when_trials_fail_then_it_goes_on_and_never_names_them() -> None:
    goal = small_goal()
    loop, world = fresh(goal, Settings(trials=14))
    probe(loop, world)
    while not loop.is_done:
        for plan in loop.next_trials(4):
            bad = Measurement({"kl": float("nan")}, "full", 1, 0.1) if plan.idx % 2 else None
            loop.tell(plan.idx, bad if plan.idx % 3 == 0 else world.measure(plan.assignment))
    failed = [row for row in loop.rows if row.state == "failed"]
    assert len(failed) == 5
    assert all(row.state == "done" for row in loop.finalists(20))
    with pytest.raises(ValueError, match="already failed"):
        loop.tell(3, None)
    with pytest.raises(KeyError):
        loop.tell(99, None)


def test_loop_when_the_budget_cannot_be_met_then_one_least_violating_trial_is_offered() -> None:
    goal = small_goal()
    goal = Goal(goal.graph, goal.space, goal.device, Budget({"bops": 1000.0}))
    loop, world = fresh(goal, Settings(trials=30))
    run(loop, world)
    assert [row.kind for row in loop.rows] == ["baseline", "fallback"]
    assert loop.finalists(3) == []
    assert loop.best_effort(3)[0].idx == 1


def test_finalists_when_ranked_then_lowest_loss_first_feasible_and_distinct() -> None:
    loop, world = fresh(small_goal(), Settings(trials=20))
    run(loop, world)
    best = loop.finalists(5)
    losses = [row.metrics["kl"] for row in best]
    assert losses == sorted(losses)
    assert len({row.assignment.digest for row in best}) == 5
    assert all(loop.is_feasible(row) for row in best)
    every = [row.metrics["kl"] for row in loop.rows if row.kind != "baseline" and loop.is_feasible(row)]
    assert losses[0] == min(every)


def test_front_when_drawn_then_loss_falls_as_bops_grow_and_the_sweep_widens_it() -> None:
    loop, world = fresh(resnet_goal(Limit("bops", relative=1 / 12)), Settings(trials=16))
    run(loop, world)
    front = sorted(loop.front(("kl", "bops")), key=lambda row: loop.costs(row.assignment).bops)
    losses = [row.metrics["kl"] for row in front]
    assert len(front) >= 4
    assert losses == sorted(losses, reverse=True)
    limit = loop.goal.budget.limits["bops"]
    assert loop.costs(front[-1].assignment).bops > limit > loop.costs(front[0].assignment).bops
    assert {row.idx for row in loop.front(("accuracy", "bops"))} == {row.idx for row in front}


def test_loop_when_compared_at_equal_evaluations_then_beats_blind_search_and_its_own_seed() -> None:
    goal = resnet_goal(Limit("bops", relative=1 / 16))
    gains, margins = [], []
    for seed in (0, 1):
        loop, world = fresh(goal, Settings(trials=40, seed=seed), seed)
        run(loop, world)
        best = loop.finalists(1)[0].metrics["kl"]
        gains.append(best / loop.rows[1].metrics["kl"])
        margins.append(best / blind(loop, world, world.calls, seed))
    assert max(margins) < 0.5
    assert float(np.mean(gains)) < 0.8


def blind(loop: SearchLoop, world: World, evaluations: int, seed: int) -> float:
    """Return the best loss of as many random assignments inside the budget."""
    rng, costs = np.random.default_rng(seed), loop._solver.costs
    limit, losses = loop.goal.budget.limits["bops"], []
    while len(losses) < evaluations:
        states = np.array([[rng.integers(size) for size in costs.sizes] for _ in range(1000)])
        inside = states[costs.costs(states)["bops"] <= limit]
        losses += [world.loss(costs.assignment(state)) for state in itertools.islice(inside, evaluations)]
    return min(losses[:evaluations])


def test_repair_variants_when_several_then_plans_name_one() -> None:
    loop, world = fresh(small_goal(), Settings(trials=12, repairs=("moments", "bias"), feedback_every=0))
    run(loop, world)
    assert {row.repair for row in loop.rows if row.kind == "sampled"} <= {"moments", "bias"}
    assert TrialRow(4, "sampled", {"repair": "bias"}, widest(small_goal().graph, 8)).repair == "bias"
    assert TrialPlan(4, "seed", {}, widest(small_goal().graph, 8)).repair is None


def test_loop_when_nothing_is_gained_then_it_stops_between_batches_and_so_does_one_rebuilt() -> None:
    goal, settings = small_goal(), Settings(trials=200, batch=3, stop=Stop(patience=7))
    loop, world = fresh(goal, settings)
    run(loop, world)
    best = loop.finalists(1)[0]
    assert 7 <= len(loop.rows) - 1 - best.idx < 7 + 3
    assert (len(loop.rows), loop.progress[0]) == (loop.total, loop.progress[1])
    for cut in (len(loop.rows) // 2, len(loop.rows)):
        again = SearchLoop.from_rows(goal, settings, loop.rows[:cut], loop._measured)
        run(again, world)
        assert [row.assignment for row in again.rows] == [row.assignment for row in loop.rows]


def test_loop_when_the_target_is_reached_in_the_budget_then_it_stops_there() -> None:
    goal = small_goal()
    whole, world = fresh(goal, Settings(trials=40))
    run(whole, world)
    losses = sorted(row.metrics["kl"] for row in whole.rows if row.idx and whole.is_feasible(row))
    loop, world = fresh(goal, Settings(trials=40, stop=Stop(target=("kl", losses[2]))))
    run(loop, world)
    assert len(loop.rows) < 41
    assert loop.finalists(1)[0].metrics["kl"] <= losses[2]
    never, world = fresh(goal, Settings(trials=12, stop=Stop(target=("kl", -1.0))))
    run(never, world)
    assert len(never.rows) == 13


def test_loop_when_known_observations_come_first_then_they_are_not_tried_again_and_can_win() -> None:
    goal = small_goal()
    first, world = fresh(goal, Settings(trials=16))
    run(first, world)
    known = [
        TrialRow(idx, "known", {}, row.assignment, state="done", metrics=row.metrics)
        for idx, row in enumerate(first.finalists(5), 1)
    ]
    loop = SearchLoop.from_rows(goal, Settings(trials=8, seed=1), known, {})
    assert (loop.open_from, loop.next_trials(3)[0].kind) == (0, "baseline")
    loop.tell(0, world.measure(widest(goal.graph, 32)))
    run(loop, world)
    assert [row.idx for row in loop.rows] == list(range(14))
    tried = [row.assignment.digest for row in loop.rows[6:]]
    assert not set(tried) & {row.assignment.digest for row in known}
    assert loop.finalists(1)[0].metrics["kl"] <= known[0].metrics["kl"]


def test_loop_when_what_is_suggested_is_known_then_a_move_takes_its_place() -> None:
    distinct = []
    for every in (0, 2):
        loop, world = fresh(small_goal(), Settings(trials=70, move_every=every))
        distinct.append(len({row.assignment.digest for row in run(loop, world).rows}))
    assert distinct[0] < 60
    assert distinct[1] == 71


def front_goal() -> tuple[Goal, Settings]:
    return resnet_goal(Limit("bops", relative=1 / 2)), Settings(trials=44, seed=2, axes=("kl", "bops"))


def test_front_when_it_is_the_goal_then_covers_more_than_a_search_for_the_best_of_as_many_trials() -> None:
    goal, settings = front_goal()
    (wide, world), (best, _) = fresh(goal, settings), fresh(goal, replace(settings, axes=()))
    run(wide, world), run(best, world)
    assert wide._frontier is not None
    volumes = [
        wide._frontier.volume([Tried(row.metrics["kl"], loop.costs(row.assignment)) for row in loop.rows[1:]])
        for loop in (wide, best)
    ]
    assert volumes[0] > 1.5 * volumes[1]
    assert all(wide.is_feasible(row) for row in wide.rows[1:])
    targets = wide._frontier.targets
    for row in wide.rows[1:]:
        assert targets[row.params["target"]].is_met(wide.costs(row.assignment)), row.idx
    assert {row.kind for row in wide.rows} == {"baseline", "seed", "sweep", "feedback", "move", "sampled"}


@pytest.mark.parametrize("sampler", ["tpe", "cmaes"])
def test_front_when_cut_at_any_batch_and_rebuilt_then_the_trials_are_the_same(sampler: SamplerName) -> None:
    goal, settings = front_goal()
    settings = replace(settings, sampler=sampler, stop=Stop(patience=16, growth=0.005))
    loop, world = fresh(goal, settings)
    run(loop, world)
    for cut in (3, 18, 33):
        again = SearchLoop.from_rows(goal, settings, loop.rows[:cut], loop._measured)
        assert run(again, world).rows == loop.rows


def test_front_when_its_volume_grows_no_more_then_the_search_stops_between_batches() -> None:
    goal, settings = front_goal()
    lengths = []
    for growth in (0.9, 0.0):
        loop, world = fresh(goal, replace(settings, stop=Stop(patience=8, growth=growth)))
        lengths.append(len(run(loop, world).rows))
        assert loop.is_done
    seeds = sum(row.kind in ("seed", "sweep") for row in loop.rows)
    assert lengths[0] == 1 + seeds + 8
    assert lengths[1] > lengths[0]


def test_spread_when_the_front_is_the_goal_then_the_best_first_and_its_points_far_apart() -> None:
    goal, settings = front_goal()
    loop, world = fresh(goal, settings)
    run(loop, world)
    chosen = loop.spread(5)
    front = loop.front(("kl", "bops"))
    assert chosen[0] == loop.finalists(1)[0]
    assert {row.idx for row in chosen} <= {row.idx for row in front}
    bops = sorted(loop.costs(row.assignment).bops for row in chosen)
    assert bops[-1] / bops[0] > 8
    assert min(two / one for one, two in itertools.pairwise(bops)) > 1.15


def test_front_when_it_has_two_costs_then_every_trial_keeps_the_limits_of_its_target() -> None:
    goal = resnet_goal(Limit("bops", relative=1 / 4), Limit("weight_bytes", relative=1 / 2))
    loop, world = fresh(goal, Settings(trials=30, axes=("kl", "bops", "weight_bytes")))
    run(loop, world)
    assert loop._frontier is not None
    for row in loop.rows[1:]:
        assert loop._frontier.targets[row.params["target"]].is_met(loop.costs(row.assignment)), row.idx
    assert len({row.params["target"] for row in loop.rows[1:]}) >= 8
    assert len(loop.front(("kl", "bops", "weight_bytes"))) >= 8

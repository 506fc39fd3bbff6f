"""Judging the cells: standings, paired differences, hypervolumes."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks import charts
from benchmarks.search import fronts, judge
from benchmarks.search.judge import Series
from benchmarks.search.plan import BUDGETS, STRATEGIES, cells


def cell(strategy: str, seed: int, accuracy: float | None, budget: str = "bops-16") -> dict[str, Any]:
    found = {"network": "n", "budget": budget, "strategy": strategy, "seed": seed, "float": 0.8}
    if accuracy is None:
        return {**found, "outcome": "impossible", "smallest": 0.25}
    return {**found, "outcome": "found", "holdout": {"accuracy": accuracy}}


def test_cells_when_nothing_is_filtered_then_the_fixed_strategies_run_once() -> None:
    everything = cells()
    grid = [item for item in everything if item.strategy == "grid" and item.target in BUDGETS]
    assert len(grid) == 3 * len(BUDGETS)
    assert len({item.name for item in everything}) == len(everything) == 3 * (8 * (5 * 3 + 3) + 3 * 3 + 2)


def test_cells_when_a_part_is_left_out_then_it_matches_all() -> None:
    assert {item.network for item in cells(["*/bops-16/tpe"])} == {"resnet8_cifar10", "vgg7_cifar10", "lenet5bn_mnist"}
    assert {item.strategy for item in cells(["resnet8_cifar10/bops-16"])} == set(STRATEGIES)


def test_paired_when_the_rival_has_no_seeds_then_its_one_result_stands_for_all() -> None:
    found = judge.paired(Series("tightfit", {0: 0.62, 1: 0.64}), Series("grid", {0: 0.6}))
    assert (found.mean, found.standing) == (pytest.approx(0.03), "first")
    assert found.spread == pytest.approx(0.01414, abs=1e-4)


def test_standing_when_the_difference_is_within_the_seeds_then_tied() -> None:
    ours, rival = Series("tightfit", {0: 0.60, 1: 0.66}), Series("tpe", {0: 0.61, 1: 0.62})
    assert judge.paired(ours, rival).standing == "tied"


def test_standing_when_every_rival_is_impossible_then_first() -> None:
    found = judge.series([cell(s, 0, 0.7 if s == "tightfit" else None) for s in STRATEGIES], "n", "bops-16")
    assert judge.standing(found) == ("first", None)
    assert found["tpe"].smallest == 0.25


def test_standing_when_only_a_rival_reaches_the_budget_then_behind() -> None:
    found = judge.series([cell(s, 0, 0.7 if s == "grid" else None) for s in STRATEGIES], "n", "bops-16")
    assert judge.standing(found)[0] == "behind"


def test_standing_when_a_strategy_has_no_cell_then_incomplete() -> None:
    assert judge.standing(judge.series([cell("tightfit", 0, 0.7)], "n", "bops-16"))[0] == "incomplete"


def test_binomial_when_both_are_even_then_the_errors_add_in_squares() -> None:
    assert judge.binomial(0.5, 0.5) == pytest.approx((0.5 / 10_000) ** 0.5)


def test_hypervolume_when_one_point_lies_in_the_middle_then_half_its_accuracy() -> None:
    assert fronts.hypervolume([(2**-3.5, 0.8)]) == pytest.approx(0.4)
    assert fronts.hypervolume([(1 / 64, 1.0)]) == pytest.approx(1.0)
    assert fronts.hypervolume([]) == 0.0


@given(st.lists(st.tuples(st.floats(1 / 64, 1 / 2), st.floats(0, 1)), max_size=8), st.floats(1 / 64, 1 / 2))
def test_hypervolume_when_a_point_is_added_then_it_never_shrinks(points: list[tuple[float, float]], x: float) -> None:
    assert fronts.hypervolume([*points, (x, 0.5)]) >= fronts.hypervolume(points) - 1e-12


def test_chart_when_points_lie_on_the_corners_then_they_are_drawn_there() -> None:
    axes = charts.Axes("t <1>", "x", "y", (1 / 4, 1 / 2), (0.0, 100.0))
    assert axes.place(1 / 4, 0) == (charts.LEFT, charts.HEIGHT - charts.BOTTOM)
    assert axes.place(1 / 2, 100) == (charts.WIDTH - charts.RIGHT, charts.TOP)
    assert "t &lt;1&gt;" in charts.chart(axes, [charts.Line("a", [(1 / 4, 10.0, 1.0)])])


def test_same_search_when_a_device_has_one_pair_then_pruning_alone_is_the_whole_search() -> None:
    by_name = {target.name: judge.same_search(target) for target in BUDGETS}
    assert by_name["latency-2"] == by_name["latency-4"] == ("pruning-only",)
    assert {by_name[name] for name in by_name if not name.startswith("latency")} == {()}


def test_ranking_claims_when_channels_alone_are_the_best_there_is_then_a_tie_holds() -> None:
    found = [cell(name, seed, 0.7, "storing-2") for name in STRATEGIES for seed in range(3)]
    claims = {claim.text: claim for claim in judge.ranking_claims(found, ["n"])}
    assert claims["n at storing-2: first or tied"].holds is True
    assert claims["n at latency-2: first"].holds is None


def test_standing_when_a_rival_is_the_same_search_then_the_next_one_is_the_closest() -> None:
    found = {name: Series(name, {0: 0.5, 1: 0.5, 2: 0.5}) for name in STRATEGIES}
    found |= {"tightfit": Series("tightfit", {0: 0.7, 1: 0.7, 2: 0.7})}
    found |= {"pruning-only": Series("pruning-only", {0: 0.7, 1: 0.7, 2: 0.7})}
    assert judge.standing(found)[0] == "tied"
    where, closest = judge.standing(found, same=("pruning-only",))
    assert where == "first" and closest is not None and closest.rival != "pruning-only"

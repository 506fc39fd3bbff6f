"""Optuna rebuilt from rows."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from typing import get_args

import optuna
import pytest

from app.domain.space import build_space
from tests.worker.search.pictures import device, random_table, resnet
from worker.search.sampling import (
    SLACK,
    SPAN,
    Asker,
    Past,
    Projection,
    SamplerName,
    make_sampler,
    project,
    stable_seed,
    suggest,
)

SAMPLERS: tuple[SamplerName, ...] = get_args(SamplerName)
RUNS = [(name, 32, (1, 9, 20, 29)) for name in SAMPLERS if name != "gp"] + [("gp", 12, (1, 7, 10))]


def projection(max_dimensions: int = 24) -> Projection:
    space = build_space(resnet(), device())
    return project(space, random_table(space, 0), max_dimensions=max_dimensions)


def bowl(params: dict[str, float]) -> float:
    return sum((value - 0.7) ** 2 for name, value in params.items() if name != SLACK)


def continued(past: list[Past], upto: int, name: SamplerName) -> list[Past]:
    """Continue a serial search; rows travel through JSON as they do in a database."""
    p, past = projection(8), list(past)
    while len(past) < upto:
        found = suggest(past, p, name, stable_seed(11, len(past)))
        stored = json.loads(json.dumps([found.params, found.sampler]))
        past.append(Past(stored[0], bowl(stored[0]), stored[1]))
    return past


def test_projection_when_dimensions_are_many_then_the_least_sensitive_share_a_parameter() -> None:
    space = build_space(resnet(), device())
    table = random_table(space, 0)
    p = project(space, table, max_dimensions=6)
    alone = [key for key, name in p.pooled.items() if key == name]
    assert len(alone) == 6
    assert set(p.pooled.values()) - set(alone) <= {"keep:*", "weight:*", "activation:*"}
    least = min(table.spread(*key.split(":")) for key in alone)
    assert least >= max(table.spread(*key.split(":")) for key in p.pooled if key not in alone)


def test_multipliers_when_params_are_zero_then_all_are_one() -> None:
    p = projection()
    assert set(p.multipliers(p.params()).values()) == {1.0}
    assert p.multipliers(p.params({"keep": SPAN}))["keep:g_s1"] == pytest.approx(4.0)


@pytest.mark.parametrize(("name", "upto", "cuts"), RUNS)
def test_sampler_when_cut_anywhere_and_rebuilt_then_continues_with_the_same_suggestions(
    name: SamplerName, upto: int, cuts: tuple[int, ...]
) -> None:
    whole = continued([], upto, name)
    for cut in cuts:
        assert continued(whole[:cut], upto, name) == whole


@pytest.mark.parametrize("name", SAMPLERS)
def test_asker_when_kept_over_changing_trials_then_suggests_what_a_fresh_one_does(name: SamplerName) -> None:
    p, past = projection(6), continued([], 8, name)
    flying = [Past(item.params, None, item.sampler) for item in past]
    kept = Asker(projection(6), name)
    for trials in (past[:7], [*past[:6], *flying[6:]], past, past[:3], [*past[:7], Past(past[7].params, math.inf, {})]):
        assert kept.suggest(trials, 3) == suggest(trials, p, name, 3)


@pytest.mark.parametrize("name", ["tpe", "nsga2", "gp"])
def test_sampler_when_the_best_trials_break_a_limit_then_it_keeps_away_from_them(name: SamplerName) -> None:
    """The optimum lies at 0.7, but all beyond 0 breaks the limit."""
    p = Projection({"keep:a": "keep:a"})
    past = [
        Past({"keep:a": x, SLACK: 0.95}, (x - 0.7) ** 2, {"trial": {"NSGAIISampler:generation": 0}}, {"bops": x})
        for x in [SPAN * (step / 12 - 1) for step in range(25)]
    ]
    free = [Past(item.params, item.loss, item.sampler) for item in past]
    means = [sum(suggest(trials, p, name, seed).params["keep:a"] for seed in range(12)) / 12 for trials in (past, free)]
    assert means[0] < means[1] - 0.2


@pytest.mark.parametrize("name", SAMPLERS)
def test_suggestion_when_asked_twice_then_is_the_same_and_inside_its_bounds(name: SamplerName) -> None:
    p = projection()
    past = [Past(p.params(), 1.0, {}), Past(p.params({"keep": SPAN}), math.inf, {}), Past(p.params(), None, {})]
    one, other = (suggest(past, p, name, 5) for _ in range(2))
    assert one == other
    assert 0.9 <= one.params[SLACK] <= 1.0
    assert all(-SPAN <= value <= SPAN for key, value in one.params.items() if key != SLACK)


def test_study_when_rows_are_in_flight_or_failed_then_numbers_stay_dense() -> None:
    p = projection(4)
    past = [Past(p.params(), 2.0, {}), Past(p.params(), None, {}), Past(p.params(), math.inf, {}, {"bops": 0.5})]
    study = Asker(p, "tpe").study(past, make_sampler("tpe", 0, p.distributions()))
    assert [trial.state.name for trial in study.trials] == ["COMPLETE", "RUNNING", "FAIL"]
    assert [trial.number for trial in study.trials] == [0, 1, 2]
    assert [trial.constraints for trial in study.trials] == [{}, {}, {"bops": 0.5}]


def test_gp_when_trials_are_many_then_only_the_best_and_the_latest_are_looked_at() -> None:
    p = Projection({"keep:a": "keep:a"})
    past = [Past(p.params({"keep": 0.001 * step}), 1.0 + (step * 7 % 200), {}) for step in range(200)]
    study = Asker(p, "gp").study([*past, Past(p.params(), None, {})], make_sampler("gp", 0, p.distributions()))
    finished = study.get_trials(states=(optuna.trial.TrialState.COMPLETE,))
    assert 40 <= len(finished) <= 60
    assert len(study.trials) == len(finished) + 1
    assert min(trial.value or 0.0 for trial in finished) == 1.0
    assert finished[-1].params["keep:a"] == pytest.approx(0.199)


@pytest.mark.parametrize("name", ["tpe", "cmaes"])
def test_tpe_and_cmaes_when_run_serially_then_beat_random_on_a_bowl(name: SamplerName) -> None:
    best = {key: min(row.loss or 0.0 for row in continued([], 90, key)) for key in (name, "random")}
    assert best[name] < 0.5 * best["random"]


def test_repair_variants_when_several_are_given_then_one_is_suggested() -> None:
    p = Projection({"keep:a": "keep:a"}, ("moments", "bias"))
    for name in ("random", "cmaes"):
        assert {suggest([], p, name, seed).params["repair"] for seed in range(12)} == {"moments", "bias"}


def test_stable_seed_when_computed_in_another_process_then_is_the_same() -> None:
    code = "from worker.search.sampling import stable_seed; print(stable_seed(3, 7))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert int(result.stdout) == stable_seed(3, 7)


def test_sampler_when_unknown_then_refused() -> None:
    with pytest.raises(ValueError, match="unknown sampler"):
        make_sampler("cma", 0, {})  # type: ignore[arg-type]

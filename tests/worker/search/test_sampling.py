"""Optuna rebuilt from rows."""

from __future__ import annotations

import json
import math
import subprocess
import sys

import pytest

from app.domain.space import build_space
from tests.worker.search.pictures import device, random_table, resnet
from worker.search.sampling import (
    SLACK,
    SPAN,
    Past,
    Projection,
    SamplerName,
    make_sampler,
    project,
    rebuild,
    stable_seed,
    suggest,
)

SAMPLERS: tuple[SamplerName, ...] = ("tpe", "nsga2", "random")


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


@pytest.mark.parametrize("name", SAMPLERS)
def test_sampler_when_cut_anywhere_and_rebuilt_then_continues_with_the_same_suggestions(name: SamplerName) -> None:
    whole = continued([], 32, name)
    for cut in (1, 9, 20, 29):
        assert continued(whole[:cut], 32, name) == whole


@pytest.mark.parametrize("name", SAMPLERS)
def test_suggestion_when_asked_twice_then_is_the_same_and_inside_its_bounds(name: SamplerName) -> None:
    p = projection()
    past = [Past(p.params(), 1.0, {}), Past(p.params({"keep": SPAN}), math.inf, {}), Past(p.params(), None, {})]
    one, other = (suggest(past, p, name, 5) for _ in range(2))
    assert one == other
    assert 0.9 <= one.params[SLACK] <= 1.0
    assert all(-SPAN <= value <= SPAN for key, value in one.params.items() if key != SLACK)


def test_tpe_when_run_serially_then_beats_random_on_a_bowl() -> None:
    best = {name: min(row.loss or 0.0 for row in continued([], 60, name)) for name in ("tpe", "random")}
    assert best["tpe"] < best["random"]


def test_rebuild_when_rows_are_in_flight_or_failed_then_numbers_stay_dense() -> None:
    p = projection(4)
    study = rebuild(
        [Past(p.params(), 2.0, {}), Past(p.params(), None, {}), Past(p.params(), math.inf, {})],
        p,
        make_sampler("tpe", 0),
    )
    assert [trial.state.name for trial in study.trials] == ["COMPLETE", "RUNNING", "FAIL"]
    assert [trial.number for trial in study.trials] == [0, 1, 2]


def test_repair_variants_when_several_are_given_then_one_is_suggested() -> None:
    p = Projection({"keep:a": "keep:a"}, ("moments", "bias"))
    assert {suggest([], p, "random", seed).params["repair"] for seed in range(12)} == {"moments", "bias"}


def test_stable_seed_when_computed_in_another_process_then_is_the_same() -> None:
    code = "from worker.search.sampling import stable_seed; print(stable_seed(3, 7))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert int(result.stdout) == stable_seed(3, 7)


def test_sampler_when_unknown_then_refused() -> None:
    with pytest.raises(ValueError, match="unknown sampler"):
        make_sampler("cma", 0)  # type: ignore[arg-type]

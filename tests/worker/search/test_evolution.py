"""CMA-ES rebuilt from trials, against Optuna's own, which keeps its optimizer pickled."""

from __future__ import annotations

import pickle
from typing import Any

import numpy as np
import optuna
import pytest
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution

from worker.search.evolution import GENERATION, CmaEs

SPACE: dict[str, BaseDistribution] = {name: FloatDistribution(-1.5, 1.5) for name in "abcd"}
SPACE["slack"] = FloatDistribution(0.9, 1.0)


def valley(params: dict[str, Any]) -> float:
    return float((params["a"] - 0.5) ** 2 + 30 * (params["b"] - params["a"]) ** 2 + params["c"] ** 2)


def told(trials: int) -> optuna.Study:
    """Return a study that Optuna's own CMA-ES has driven."""
    study = optuna.create_study(sampler=optuna.samplers.CmaEsSampler(seed=1, warn_independent_sampling=False))
    study.enqueue_trial(dict.fromkeys("abcd", 0.0) | {"slack": 1.0})
    for _ in range(trials):
        trial = study.ask(SPACE)
        study.tell(trial, valley(trial.params))
    return study


def test_optimizer_when_told_again_from_the_trials_then_is_the_one_that_optuna_pickled() -> None:
    study = told(60)
    notes: dict[str, Any] = {}
    for trial in study.trials:
        notes |= {key: text for key, text in trial.system_attrs.items() if key.startswith("cma:optimizer")}
    pickled = pickle.loads(bytes.fromhex("".join(notes[f"cma:optimizer:{place}"] for place in range(len(notes)))))
    rebuilt = CmaEs(7, SPACE).told(study)
    assert rebuilt.generation == pickled.generation == 7
    order = np.argsort(list(SPACE))  # Optuna sorts its parameters
    np.testing.assert_allclose(rebuilt.mean[order], pickled.mean, rtol=1e-9)
    np.testing.assert_allclose(rebuilt._sigma, pickled._sigma, rtol=1e-9)
    np.testing.assert_allclose(rebuilt._C[np.ix_(order, order)], pickled._C, rtol=1e-7, atol=1e-12)


def test_suggestion_when_generations_are_told_then_moves_to_the_optimum_inside_the_bounds() -> None:
    study = optuna.create_study(sampler=CmaEs(0, SPACE))
    for number in range(240):
        study.sampler = CmaEs(number, SPACE)
        trial = study.ask(SPACE)
        assert all(SPACE[key]._contains(value) for key, value in trial.params.items())
        study.tell(trial, valley(trial.params))
    assert study.best_value < 0.02
    assert max(trial.system_attrs[GENERATION] for trial in study.trials) >= 25


def test_sampler_when_few_parameters_are_numbers_then_the_others_are_drawn_at_random() -> None:
    repair = CategoricalDistribution(("moments", "bias"))
    mixed: dict[str, BaseDistribution] = {"a": SPACE["a"], "b": SPACE["b"], "repair": repair}
    study = optuna.create_study(sampler=CmaEs(0, mixed))
    assert study.ask(mixed).params["repair"] in repair.choices
    alone: dict[str, BaseDistribution] = {"slack": SPACE["slack"]}
    single = optuna.create_study(sampler=CmaEs(0, alone))
    trial = single.ask(alone)
    assert 0.9 <= trial.params["slack"] <= 1.0
    assert GENERATION not in single.trials[0].system_attrs


@pytest.mark.parametrize("seed", [0, 5])
def test_suggestion_when_asked_twice_then_is_the_same_and_another_with_another_seed(seed: int) -> None:
    study = told(20)
    drawn = []
    for chosen in (seed, seed, seed + 1):
        study.sampler = CmaEs(chosen, SPACE)
        drawn.append(study.ask(SPACE).params)
    assert drawn[0] == drawn[1] != drawn[2]

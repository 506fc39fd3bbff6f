"""Optuna in projected space: it suggests multipliers on the sensitivities, and each suggestion is allocated.

Every trial so lies inside the budget by construction. Studies are never stored: they are rebuilt from trial rows, and
each ask uses a sampler freshly seeded from (search seed, trial index), so a restart continues with the same trials.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution
from optuna.samplers import BaseSampler, NSGAIISampler, RandomSampler, TPESampler
from optuna.trial import TrialState, create_trial

from app.domain.space import SearchSpace
from worker.search.sensitivity import KINDS, SensitivityTable

SamplerName = Literal["tpe", "nsga2", "random"]
SPAN = math.log(4.0)
SLACK = "slack"
REPAIR = "repair"
_LOWEST_SLACK = 0.9
_POPULATION = 12
_GENERATION = "NSGAIISampler:generation"
_KEPT = "NSGAIISampler:"
_STUDY = "search"

optuna.logging.set_verbosity(optuna.logging.WARNING)


@dataclass(frozen=True)
class Projection:
    """The sampler's parameters: one log-multiplier per dimension that matters, one shared by the rest of each kind.

    `pooled` maps "kind:name" of a dimension to its parameter's name.
    """

    pooled: Mapping[str, str]
    repairs: tuple[str, ...] = ()

    def distributions(self) -> dict[str, BaseDistribution]:
        """Return the distribution of every parameter."""
        found: dict[str, BaseDistribution] = {
            name: FloatDistribution(-SPAN, SPAN) for name in dict.fromkeys(self.pooled.values())
        }
        found[SLACK] = FloatDistribution(_LOWEST_SLACK, 1.0)
        if len(self.repairs) > 1:
            found[REPAIR] = CategoricalDistribution(self.repairs)
        return found

    def multipliers(self, params: Mapping[str, Any]) -> dict[str, float]:
        """Return the factor on each dimension's losses, by "kind:name"."""
        return {key: math.exp(params[name]) for key, name in self.pooled.items()}

    def params(self, kinds: Mapping[str, float] | None = None) -> dict[str, Any]:
        """Return parameters with one log-multiplier per kind (default 0), no slack and the first repair variant."""
        by_kind = kinds or {}
        found: dict[str, Any] = {name: by_kind.get(name.split(":")[0], 0.0) for name in self.pooled.values()}
        found[SLACK] = 1.0
        if len(self.repairs) > 1:
            found[REPAIR] = self.repairs[0]
        return found


def project(
    space: SearchSpace, table: SensitivityTable, repairs: tuple[str, ...] = (), max_dimensions: int = 24
) -> Projection:
    """Give the dimensions with the largest increments a parameter each; pool the others by kind."""
    options = zip(KINDS, (space.keep, space.weight_bits, space.activation_bits), strict=True)
    free = [(kind, name) for kind, by_name in options for name, choices in by_name.items() if len(choices) > 1]
    ranked = sorted(free, key=lambda item: -table.spread(*item))
    alone = set(ranked[:max_dimensions])
    return Projection({f"{k}:{n}": f"{k}:{n}" if (k, n) in alone else f"{k}:*" for k, n in free}, repairs)


@dataclass(frozen=True)
class Past:
    """What a study needs of one earlier trial; `loss` is None for a trial in flight, infinite for a failed one."""

    params: Mapping[str, Any]
    loss: float | None
    sampler: Mapping[str, Any]


@dataclass(frozen=True)
class Suggestion:
    """Suggested parameters, and what the sampler noted: stored with the trial's row, it lets a study be rebuilt."""

    params: dict[str, Any]
    sampler: dict[str, Any]


def stable_seed(*parts: object) -> int:
    """Return 32 bits that depend on nothing but `parts` (the built-in hash differs between processes)."""
    text = ":".join(str(part) for part in parts)
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big")


def make_sampler(name: SamplerName, seed: int) -> BaseSampler:
    """Return a fresh sampler. Raises ValueError for a name that is not offered."""
    if name == "tpe":
        return TPESampler(seed=seed, multivariate=True, n_startup_trials=6)
    if name == "nsga2":
        return NSGAIISampler(seed=seed, population_size=_POPULATION)
    if name == "random":
        return RandomSampler(seed=seed)
    raise ValueError(f"unknown sampler {name!r}")


def rebuild(past: Sequence[Past], projection: Projection, sampler: BaseSampler) -> optuna.Study:
    """Return the study that the trials in `past` leave, in their order."""
    storage = optuna.storages.InMemoryStorage()
    study = optuna.create_study(storage=storage, study_name=_STUDY, sampler=sampler, direction="minimize")
    study_id = storage.get_study_id_from_name(_STUDY)
    distributions = projection.distributions()
    for item in past:
        for key, value in item.sampler.get("study", {}).items():
            storage.set_study_system_attr(study_id, key, value)
        study.add_trial(
            create_trial(
                state=_state(item.loss),
                value=item.loss if item.loss is not None and math.isfinite(item.loss) else None,
                params=dict(item.params),
                distributions=distributions,
                system_attrs=dict(item.sampler.get("trial", {_GENERATION: 0})),
            )
        )
    return study


def suggest(past: Sequence[Past], projection: Projection, name: SamplerName, seed: int) -> Suggestion:
    """Ask a freshly seeded sampler for the next parameters after the trials in `past`."""
    study = rebuild(past, projection, make_sampler(name, seed))
    before = _study_notes(study)
    trial = study.ask(projection.distributions())
    noted = {k: v for k, v in study.trials[trial.number].system_attrs.items() if k.startswith(_KEPT)}
    fresh = {key: value for key, value in _study_notes(study).items() if key not in before}
    return Suggestion(dict(trial.params), {"trial": noted, "study": fresh})


def _study_notes(study: optuna.Study) -> dict[str, Any]:
    """Return what the sampler wrote into the study: NSGA-II keeps each generation's parents there."""
    attributes = study._storage.get_study_system_attrs(study._study_id)
    return {key: value for key, value in attributes.items() if key.startswith(_KEPT)}


def _state(loss: float | None) -> TrialState:
    if loss is None:
        return TrialState.RUNNING
    return TrialState.COMPLETE if math.isfinite(loss) else TrialState.FAIL

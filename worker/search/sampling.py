"""Optuna in projected space: it suggests multipliers on the sensitivities, and each suggestion is allocated.

Every trial so lies inside the budget by construction. Studies are never stored: they are rebuilt from trial rows, and
each ask uses a sampler freshly seeded from (search seed, trial index), so a restart continues with the same trials.
A trial that was laid out for Optuna once is used again, as long as its row says the same.
"""

from __future__ import annotations

import copy
import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Literal

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution
from optuna.samplers import BaseSampler, GPSampler, NSGAIISampler, RandomSampler, TPESampler
from optuna.trial import FrozenTrial, TrialState

from app.domain.space import SearchSpace
from worker.search.evolution import GENERATION, CmaEs
from worker.search.sensitivity import SensitivityTable, dimensions

SamplerName = Literal["tpe", "nsga2", "cmaes", "gp", "random"]
SPAN = math.log(4.0)
SLACK = "slack"
REPAIR = "repair"
_LOWEST_SLACK = 0.9
_POPULATION = 12
_STARTUP = 6
_FIRST = {"NSGAIISampler:generation": 0}  # of trials that NSGA-II did not suggest
_KEPT = ("NSGAIISampler:", GENERATION)
_STUDY = "search"
_BEST, _LATEST = 20, 40  # what a Gaussian process is fitted to: its cost grows with the cube of that
_THEN = datetime(2000, 1, 1)  # when a trial ran is no sampler's business

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
    free = [(kind, name) for kind, name, choices in dimensions(space) if len(choices) > 1]
    ranked = sorted(free, key=lambda item: -table.spread(*item))
    alone = set(ranked[:max_dimensions])
    return Projection({f"{k}:{n}": f"{k}:{n}" if (k, n) in alone else f"{k}:*" for k, n in free}, repairs)


@dataclass(frozen=True)
class Past:
    """What a study needs of one earlier trial; `loss` is None for a trial in flight, infinite for a failed one.

    `excess` says by limit how far above it the trial lies, as a share of it (0 or less: kept): given for all, or none.
    """

    params: Mapping[str, Any]
    loss: float | None
    sampler: Mapping[str, Any]
    excess: Mapping[str, float] = field(default_factory=dict)

    @property
    def state(self) -> TrialState:
        """Return the trial's state in Optuna's words."""
        if self.loss is None:
            return TrialState.RUNNING
        return TrialState.COMPLETE if math.isfinite(self.loss) else TrialState.FAIL


@dataclass(frozen=True)
class Suggestion:
    """Suggested parameters, and what the sampler noted: stored with the trial's row, it lets a study be rebuilt."""

    params: dict[str, Any]
    sampler: dict[str, Any]


def stable_seed(*parts: object) -> int:
    """Return 32 bits that depend on nothing but `parts` (the built-in hash differs between processes)."""
    text = ":".join(str(part) for part in parts)
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big")


class _Told:
    """What makes a sampler know the parameters, in place of finding out at each ask what all trials have in common."""

    space: Mapping[str, BaseDistribution] = {}

    def infer_relative_search_space(self, study: optuna.Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        """Return the parameters that are drawn together."""
        return dict(self.space)


class _Tpe(_Told, TPESampler):
    pass


class _Gp(_Told, GPSampler):
    pass


def make_sampler(name: SamplerName, seed: int, space: Mapping[str, BaseDistribution]) -> BaseSampler:
    """Return a fresh sampler of the parameters in `space`. Raises ValueError for a name that is not offered."""
    if name == "random":
        return RandomSampler(seed=seed)
    if name == "cmaes":
        return CmaEs(seed, space)
    if name == "nsga2":  # its notes carry the name of its class: none of ours
        return NSGAIISampler(seed=seed, population_size=_POPULATION)
    found: _Tpe | _Gp
    if name == "tpe":
        found = _Tpe(seed=seed, multivariate=True, n_startup_trials=_STARTUP)
    elif name == "gp":
        found = _Gp(seed=seed, n_startup_trials=_STARTUP, warn_independent_sampling=False)
    else:
        raise ValueError(f"unknown sampler {name!r}")
    found.space = dict(sorted(space.items()))
    return found


class _Laid(FrozenTrial):
    """A past trial laid out for Optuna. Storages replace trials rather than change them, so that copies may share."""

    def __deepcopy__(self, memo: dict[int, Any]) -> _Laid:
        return copy.copy(self)


class Asker:
    """Asks one kind of sampler, each time freshly seeded, after the trials there are by then."""

    def __init__(self, projection: Projection, name: SamplerName) -> None:
        self._name: SamplerName = name
        self._distributions = projection.distributions()
        self._laid: list[tuple[Past, _Laid]] = []

    def suggest(self, past: Sequence[Past], seed: int) -> Suggestion:
        """Return the next parameters after the trials in `past`, given in their order."""
        study = self.study(past, make_sampler(self._name, seed, self._distributions))
        before = _study_notes(study)
        trial = study.ask(self._distributions)
        found = study.get_trials(deepcopy=False)[trial.number].system_attrs
        noted = {key: value for key, value in found.items() if key.startswith(_KEPT)}
        fresh = {key: value for key, value in _study_notes(study).items() if key not in before}
        return Suggestion(dict(trial.params), {"trial": noted, "study": fresh})

    def study(self, past: Sequence[Past], sampler: BaseSampler) -> optuna.Study:
        """Return the study that the trials in `past` leave."""
        storage = optuna.storages.InMemoryStorage()
        study = optuna.create_study(storage=storage, study_name=_STUDY, sampler=sampler, direction="minimize")
        study_id = storage.get_study_id_from_name(_STUDY)
        for item in past:
            for key, value in item.sampler.get("study", {}).items():
                storage.set_study_system_attr(study_id, key, value)
        for trial in self._trials(_looked_at(past, self._name)):
            storage.create_new_trial(study_id, trial)
        return study

    def _trials(self, past: Sequence[Past]) -> list[_Laid]:
        """Return the trials laid out, those anew whose rows say something new."""
        del self._laid[len(past) :]
        for index, item in enumerate(past):
            if index == len(self._laid):
                self._laid.append((item, self._lay(item)))
            elif self._laid[index][0] != item:
                self._laid[index] = item, self._lay(item)
        return [trial for _, trial in self._laid]

    def _lay(self, item: Past) -> _Laid:
        trial = _Laid(
            number=-1,
            trial_id=-1,
            state=item.state,
            value=item.loss if item.state is TrialState.COMPLETE else None,
            datetime_start=_THEN,
            datetime_complete=None if item.loss is None else _THEN,
            params=dict(item.params),
            distributions=self._distributions,
            user_attrs={},
            system_attrs=dict(item.sampler.get("trial", _FIRST)),
            intermediate_values={},
        )
        for name, value in item.excess.items():
            trial.set_constraint(name, value)
        return trial


def suggest(past: Sequence[Past], projection: Projection, name: SamplerName, seed: int) -> Suggestion:
    """Ask once; see `Asker.suggest`."""
    return Asker(projection, name).suggest(past, seed)


def _looked_at(past: Sequence[Past], name: SamplerName) -> Sequence[Past]:
    """Return the trials that a sampler looks at: random sampling none, a Gaussian process some, the others all."""
    if name == "random":
        return ()
    if name != "gp":
        return past
    done = [index for index, item in enumerate(past) if item.state is TrialState.COMPLETE]
    best = sorted(done, key=lambda index: (past[index].loss, index))[:_BEST]
    kept = {*best, *done[-_LATEST:], *(index for index, item in enumerate(past) if item.loss is None)}
    return [past[index] for index in sorted(kept)]


def _study_notes(study: optuna.Study) -> dict[str, Any]:
    """Return what the sampler wrote into the study: NSGA-II keeps each generation's parents there."""
    attributes = study._storage.get_study_system_attrs(study._study_id)
    return {key: value for key, value in attributes.items() if key.startswith(_KEPT)}

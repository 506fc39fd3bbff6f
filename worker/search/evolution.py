"""CMA-ES as an Optuna sampler, rebuilt at each ask from what the trials tell, generation by generation.

Optuna's own sampler keeps its optimizer pickled in the trials' attributes. This one keeps the number of a trial's
generation alone: rows stay small, nothing is ever unpickled, and telling the generations again gives the same state
(Hansen, The CMA Evolution Strategy: A Tutorial, 2016). Parameters that are no numbers are drawn independently.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from optuna.distributions import BaseDistribution, FloatDistribution
from optuna.samplers import BaseSampler, RandomSampler
from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState

if TYPE_CHECKING:
    from cmaes import CMA

GENERATION = "cma:generation"
_SIGMA = 1 / 6  # of a parameter's range
_RESAMPLED = 10  # times the number of parameters: how often a draw outside the bounds is repeated


class CmaEs(BaseSampler):
    """Samples parameters from the Gaussian that the generations so far have moved and shaped (losses minimised)."""

    def __init__(self, seed: int, space: Mapping[str, BaseDistribution]) -> None:
        self._seed = seed
        self._ranges = {key: item for key, item in space.items() if isinstance(item, FloatDistribution)}
        self._others = RandomSampler(seed=seed)

    def infer_relative_search_space(self, study: Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        """Return the parameters that are numbers, where they are more than one."""
        return dict(self._ranges) if len(self._ranges) > 1 else {}

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """Return parameters drawn for the generation that is open."""
        if not search_space:
            return {}
        optimizer = self.told(study)
        optimizer.reseed_rng(self._seed)
        study._storage.set_trial_system_attr(trial._trial_id, GENERATION, optimizer.generation)
        drawn = zip(self._ranges.items(), optimizer.ask(), strict=True)
        return {key: float(item.low + share * (item.high - item.low)) for (key, item), share in drawn}

    def sample_independent(
        self, study: Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        """Return a random value of a parameter that is no number."""
        return self._others.sample_independent(study, trial, param_name, param_distribution)

    def told(self, study: Study) -> CMA:
        """Return the optimizer after every generation that is complete."""
        from cmaes import CMA  # no other sampler needs it

        size = len(self._ranges)
        optimizer = CMA(
            mean=np.full(size, 0.5),
            sigma=_SIGMA,
            bounds=np.tile((0.0, 1.0), (size, 1)),
            n_max_resampling=_RESAMPLED * size,
            seed=self._seed,
        )
        members: dict[int, list[FrozenTrial]] = {}
        for item in study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,)):
            if GENERATION in item.system_attrs:
                members.setdefault(item.system_attrs[GENERATION], []).append(item)
        while len(known := members.get(optimizer.generation, [])) >= optimizer.population_size:
            optimizer.tell([(self._shares(item), item.value) for item in known[: optimizer.population_size]])
        return optimizer

    def _shares(self, trial: FrozenTrial) -> NDArray[np.float64]:
        """Return where in their ranges a trial's parameters lie: 0 to 1 each."""
        ranges = self._ranges.items()
        return np.array([(trial.params[key] - item.low) / (item.high - item.low) for key, item in ranges])

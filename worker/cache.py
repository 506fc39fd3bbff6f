"""Where a search's measurements are kept, for every search on the same network and data."""

from __future__ import annotations

import hashlib
import json
from typing import Any

from app.domain.space import Assignment
from app.store.evaluations import Evaluated
from worker.job import Job
from worker.processor import kind_of

Json = dict[str, Any]
Item = tuple[Assignment, str, str]
"""(assignment, fidelity, repair)."""

MEASUREMENT_VERSION = 6  # raise it when the same assignment measures differently: stored measurements then lapse


class Cache:
    """The keys under which one search's measurements lie."""

    def __init__(self, job: Job) -> None:
        device = job.goal.device  # of which this alone matters: what it asks of grids
        scheme = [sorted(device.per_channel_weights), device.activation_scheme, device.scale]
        self._common = [MEASUREMENT_VERSION, *job.digests, scheme, job.opening["options"], kind_of(job.processor)]

    @property
    def context(self) -> str:
        """Hash what measurements of any two assignments of this search have in common."""
        return _digest(self._common)

    def key(self, item: Item) -> str:
        """Hash everything a measurement depends on."""
        assignment, fidelity, repair = item
        return _digest([*self._common, assignment.digest, fidelity, repair])

    def entry(self, item: Item, measurement: Json) -> Evaluated:
        """Return a measurement as it is stored."""
        assignment, fidelity, repair = item
        return Evaluated(self.key(item), measurement, self.context, fidelity, repair, assignment.to_json())


def _digest(parts: list[Any]) -> str:
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()

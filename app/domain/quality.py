"""The quality a search is asked to keep: a floor, or an allowed drop below the float network, on the hold-out set."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Quality:
    """What is asked of a metric where higher is better: at least `min`, at most `max_drop` below the float network."""

    metric: str
    min: float | None = None
    max_drop: float | None = None

    def floor(self, baseline: Mapping[str, float]) -> float:
        """Return the least value that is enough, given the float network's metrics on the same pictures."""
        floors = [] if self.min is None else [self.min]
        if self.max_drop is not None:
            floors.append(baseline[self.metric] - self.max_drop)
        return max(floors)

    def judged(self, metrics: Mapping[str, float], baseline: Mapping[str, float]) -> dict[str, Any]:
        """Return {metric, floor, value, met} for a candidate's metrics on the hold-out set."""
        floor, value = self.floor(baseline), metrics[self.metric]
        return {"metric": self.metric, "floor": floor, "value": value, "met": value >= floor}


def quality_of(request: Mapping[str, Any]) -> Quality | None:
    """Return the quality a request asks for, if it does."""
    asked = request.get("quality")
    return None if not asked else Quality(asked["metric"], asked.get("min"), asked.get("max_drop"))

"""The quality a search is asked to keep on the hold-out set: a bound on a metric, or an allowed drop below float."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from app.domain.metrics import HIGHER_IS_BETTER


@dataclass(frozen=True)
class Quality:
    """What is asked of a metric: at least `min`, at most `max_drop` below the float network; where lower is better, at
    most `max`."""

    metric: str
    min: float | None = None
    max_drop: float | None = None
    max: float | None = None

    def floor(self, baseline: Mapping[str, float]) -> float:
        """Return the least value that is enough, given the float network's metrics on the same pictures."""
        floors = [] if self.min is None else [self.min]
        if self.max_drop is not None:
            floors.append(baseline[self.metric] - self.max_drop)
        return max(floors)

    def judged(self, metrics: Mapping[str, float], baseline: Mapping[str, float]) -> dict[str, Any]:
        """Return {metric, floor or ceiling, value, met} for a candidate's metrics on the hold-out set."""
        value = metrics[self.metric]
        if self.max is not None:
            return {"metric": self.metric, "ceiling": self.max, "value": value, "met": value <= self.max}
        floor = self.floor(baseline)
        return {"metric": self.metric, "floor": floor, "value": value, "met": value >= floor}


def misbound(asked: Mapping[str, Any]) -> str | None:
    """Return why the bounds of a quality don't suit its metric, or None where they do."""
    metric, higher = asked["metric"], asked["metric"] in HIGHER_IS_BETTER
    wrong = ("max",) if higher else ("min", "max_drop")
    given = [key for key in wrong if asked.get(key) is not None]
    if not given:
        return None
    way, right = ("higher", "min or max_drop") if higher else ("lower", "max")
    return f"{' and '.join(given)} can't bound {metric}: {way} is better, so give {right}"


def quality_of(request: Mapping[str, Any]) -> Quality | None:
    """Return the quality a request asks for, if it does."""
    asked = request.get("quality")
    return None if not asked else Quality(asked["metric"], asked.get("min"), asked.get("max_drop"), asked.get("max"))

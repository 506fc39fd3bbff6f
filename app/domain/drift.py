"""Drift: how far a device's predicted latencies lie from what is measured, and what follows for its profile.

Pure functions of (predicted, measured) pairs of one profile. The bias is the geometric mean of measured / predicted;
errors are relative: |measured / predicted - 1|.
"""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

MIN_PAIRS, MIN_STALE = 5, 8
DRIFTING, STALE = 0.15, 0.30
RELEASE = 0.8  # a verdict is left only below this share of the threshold it was reached at
DEFAULT_ERROR = 0.5  # of a profile that was never checked

Verdict = Literal["unknown", "ok", "drifting", "stale"]
Pair = tuple[float, float]
_RANK: dict[Verdict, int] = {"unknown": 0, "ok": 0, "drifting": 1, "stale": 2}


@dataclass(frozen=True)
class Accuracy:
    """What the pairs of one profile say: count, bias, error that nine of ten stay below, verdict, and the interval.

    A latency is expected within predicted x [1 - interval, 1 + interval] (the lower end at least 0).
    """

    pairs: int
    bias: float | None
    p90: float | None
    verdict: Verdict
    interval: float

    def to_json(self) -> dict[str, Any]:
        """Return the figures as JSON."""
        return asdict(self)

    def bounds(self, predicted_ms: float) -> tuple[float, float]:
        """Return the interval around a prediction in milliseconds."""
        return predicted_ms * max(0.0, 1 - self.interval), predicted_ms * (1 + self.interval)


def errors(pairs: Sequence[Pair]) -> list[float]:
    """Return the relative error of each (predicted, measured) pair."""
    return [abs(measured / predicted - 1) for predicted, measured in pairs]


def bias(pairs: Sequence[Pair]) -> float:
    """Return the geometric mean of measured / predicted."""
    return math.exp(statistics.fmean(math.log(measured / predicted) for predicted, measured in pairs))


def p90(values: Sequence[float]) -> float:
    """Return the smallest value that at least nine of ten do not exceed."""
    ordered = sorted(values)
    return ordered[math.ceil(0.9 * len(ordered)) - 1]


def assess(pairs: Sequence[Pair], profile_error: float | None = None) -> Accuracy:
    """Judge a profile by its (predicted, measured) pairs, oldest first.

    The verdict is reached step by step as pairs came in, so that a single pair moves it neither back nor forth:
    drifting above 15 % (p90, at least 5 pairs), stale above 30 % (at least 8), back below 80 % of those.
    """
    usable = _usable(pairs)
    known = DEFAULT_ERROR if profile_error is None else profile_error
    if not usable:
        return Accuracy(0, None, None, "unknown", known)
    verdict: Verdict = "unknown"
    found = errors(usable)
    for count in range(MIN_PAIRS, len(found) + 1):
        verdict = _next(verdict, count, p90(found[:count]))
    observed = p90(found)
    if len(usable) < MIN_PAIRS:  # too few to judge the profile by, but enough to doubt a narrow interval
        return Accuracy(len(usable), bias(usable), observed, "unknown", max(known, observed))
    return Accuracy(
        len(usable), bias(usable), observed, verdict, observed if profile_error is None else max(known, observed)
    )


def _usable(pairs: Sequence[Pair]) -> list[Pair]:
    return [(one, other) for one, other in pairs if one > 0 and other > 0]


def _next(before: Verdict, count: int, error: float) -> Verdict:
    """Return the verdict after one more pair."""
    reached: Verdict = "ok"
    if error > DRIFTING:
        reached = "drifting"
    if error > STALE and count >= MIN_STALE:
        reached = "stale"
    threshold = {"stale": STALE, "drifting": DRIFTING}.get(before)
    holds = threshold is not None and error > RELEASE * threshold
    return before if holds and _RANK[reached] < _RANK[before] else reached


def correction(pairs: Sequence[Pair]) -> float:
    """Return the factor that a profile's latencies are refitted by. Raises ValueError for fewer than 5 usable pairs."""
    usable = _usable(pairs)
    if len(usable) < MIN_PAIRS:
        raise ValueError(f"{len(usable)} measured latencies; a refit needs at least {MIN_PAIRS}")
    return bias(usable)


def refitted(profile: Mapping[str, Any], factor: float, residual: float, pairs: int) -> dict[str, Any]:
    """Return a profile record whose every latency is `factor` times what it was; `residual` is its new error_p90.

    Times grow by the factor, rates fall by it: compute, memory, fallback, overheads and a latency table's correction.
    """
    found: dict[str, Any] = json.loads(json.dumps(profile))
    for entry in found["compute"]:
        entry["gmacs"] /= factor
    for pool in found["memory"].values():
        for rate in ("gbps", "cache_gbps"):
            pool.update({rate: pool[rate] / factor} if pool.get(rate) else {})
    overheads = found.get("overheads") or {}
    overheads.update({name: value * factor for name, value in overheads.items()})
    fallback = found.get("fallback") or {}
    if fallback.get("gmacs"):
        fallback["gmacs"] /= factor
    if fallback.get("boundary_us"):
        fallback["boundary_us"] *= factor
    correction = (found.get("latency_table") or {}).get("correction") or {}
    correction.update({name: value * factor for name, value in correction.items()})
    evidence = found.setdefault("evidence", {})
    evidence["error_p90"] = residual
    said = f"refitted by {factor:.4g} to {pairs} measured latencies"
    evidence["sources"] = [*(evidence.get("sources") or []), said]
    return found


def refit(profile: Mapping[str, Any], pairs: Sequence[Pair]) -> dict[str, Any]:
    """Return the profile record scaled to the pairs. Raises ValueError for fewer than 5 usable pairs."""
    factor = correction(pairs)
    residual = p90(errors([(one * factor, other) for one, other in _usable(pairs)]))
    return refitted(profile, factor, residual, len(pairs))

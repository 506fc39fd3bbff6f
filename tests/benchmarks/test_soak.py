"""What a soak says of its samples: growth is told, noise is not taken for it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from benchmarks import soak
from benchmarks.claims import Claim


def samples(growth_mib_h: float, noise_mib: float = 0.5, minutes: int = 20) -> list[dict[str, float]]:
    """A service that fills its caches in the first minutes and then grows."""
    draw = np.random.default_rng(0)
    found = []
    for minute in np.linspace(0, minutes, 12 * minutes):
        flat = dict.fromkeys(soak.SHOWN, 3.0)
        rss = 100 + 20 * min(1.0, minute / 5) + growth_mib_h * minute / 60 + noise_mib * draw.standard_normal()
        found.append({**flat, "minute": float(minute), "service_rss": rss})
    return found


def judged(growth_mib_h: float = 0.0, **changed: Any) -> dict[str, Claim]:
    rest = {**dict.fromkeys(soak.SHOWN, 3.0), "temporary": 0.0}
    found = {"samples": samples(growth_mib_h), "idle": rest, "after": rest, "errors": [], "referred": 3, "missing": 0}
    return {claim.text.split(":")[0]: claim for claim in soak.claims({**found, **changed})}


@pytest.mark.parametrize("rate", [0.0, 12.0])
def test_slope_when_a_value_grows_then_the_rate_per_hour_within_its_error(rate: float) -> None:
    found, error = soak.slope(soak._late(samples(rate)), "service_rss")
    assert abs(found - rate) < 3 * error < 3.0


def test_claims_when_nothing_grows_then_all_hold_and_growth_or_leftovers_are_told() -> None:
    assert all(claim.holds for claim in judged().values())
    assert not judged(growth_mib_h=12.0)["service MiB"].holds
    rest = {**dict.fromkeys(soak.SHOWN, 3.0), "temporary": 0.0}
    assert not judged(after={**rest, "temporary": 1.0})["temporary files"].holds
    assert not judged(after={**rest, "worker_fds": 20.0})["worker files"].holds
    assert not judged(missing=1)["stored files"].holds
    assert not judged(errors=["x"])["no fault and no refusal that was not asked for"].holds

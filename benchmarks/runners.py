"""Two runners with one thread each against one, on the same search: wall time, and the same trials."""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.claims import Claim
from benchmarks.search import service

NAME, LEAST = "resnet8_cifar10", 1.5
ROUNDS = {200: 3, 40: 1}
"""By a search's trials: how often it is run in turns with one and with two runners. 200 are the comparison's."""


def measure() -> dict[str, Any]:
    """Run each search in turns with one and with two runners, each in a database of its own."""
    return {"network": NAME, **{str(trials): _ratio(trials, rounds) for trials, rounds in ROUNDS.items()}}


def _ratio(wanted: int, rounds: int) -> dict[str, Any]:
    found: dict[int, list[float]] = {1: [], 2: []}
    trials = []
    with tempfile.TemporaryDirectory(prefix="tightfit-runners-") as name:
        for turn in range(rounds):
            for runners in found:
                folder = Path(name) / f"{turn}-{runners}"
                search = service.queued(folder, service.Asked(NAME, options={"runners": runners, "trials": wanted}))
                for process in [service.started(folder, search, slot) for slot in range(runners)]:
                    process.wait()
                found[runners].append(service.seconds(folder, search))
                trials.append(service.trials(folder, search))
    ratios = [one / two for one, two in zip(found[1], found[2], strict=True)]
    return {
        "seconds": {str(key): values for key, values in found.items()},
        "ratio": statistics.median(ratios),
        "ratios": ratios,
        "trials": len(trials[0]),
        "same_trials": all(item == trials[0] for item in trials),
    }


def claims(found: Mapping[str, Any]) -> Sequence[Claim]:
    """Return what the figures say: the claim is of the longest search, the others stand beside it."""
    sizes = [found[str(trials)] for trials in ROUNDS]
    told = "; ".join(_told(item) for item in sizes)
    return [Claim(f"two runners are at least {LEAST} times as fast as one", sizes[0]["ratio"] >= LEAST, told)]


def _told(found: Mapping[str, Any]) -> str:
    one, two = (statistics.median(found["seconds"][key]) for key in ("1", "2"))
    same = "the same" if found["same_trials"] else "DIFFERENT"
    return f"{found['ratio']:.2f} (medians {one:.0f} and {two:.0f} s, {found['trials']} trials, {same} ones)"

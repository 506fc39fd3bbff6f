"""Two runners with one thread each against one, on the same search: wall time, and the same trials."""

from __future__ import annotations

import statistics
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.claims import Claim
from benchmarks.search import service

NAME, ROUNDS, LEAST = "resnet8_cifar10", 3, 1.5


def measure() -> dict[str, Any]:
    """Run the search in turns with one and with two runners, each in a database of its own."""
    found: dict[int, list[float]] = {1: [], 2: []}
    trials = []
    with tempfile.TemporaryDirectory(prefix="tightfit-runners-") as name:
        for turn in range(ROUNDS):
            for runners in found:
                folder = Path(name) / f"{turn}-{runners}"
                search = service.queued(folder, NAME, runners=runners)
                for process in [service.started(folder, search, slot) for slot in range(runners)]:
                    process.wait()
                found[runners].append(service.seconds(folder, search))
                trials.append(service.trials(folder, search))
    ratios = [one / two for one, two in zip(found[1], found[2], strict=True)]
    return {
        "network": NAME,
        "seconds": {str(key): values for key, values in found.items()},
        "ratio": statistics.median(ratios),
        "ratios": ratios,
        "trials": len(trials[0]),
        "same_trials": all(item == trials[0] for item in trials),
    }


def claims(found: dict[str, Any]) -> list[Claim]:
    """Return what the figures say."""
    one, two = (statistics.median(found["seconds"][key]) for key in ("1", "2"))
    figures = (
        f"{found['ratio']:.2f} (medians {one:.0f} and {two:.0f} s, {found['trials']} trials, "
        f"{'the same' if found['same_trials'] else 'DIFFERENT'} ones)"
    )
    return [Claim(f"two runners are at least {LEAST} times as fast as one", found["ratio"] >= LEAST, figures)]

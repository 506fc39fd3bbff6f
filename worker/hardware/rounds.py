"""Measuring many networks batch by batch, each batch with a reference that tells whether the machine was quiet."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TypeVar

from worker.hardware.measure import Latency
from worker.hardware.measuring import Bench, Measurer

Item = TypeVar("Item")
BATCH, REPEATS, TOLERANCE = 24, 2, 1.03


def steadily(measurer: Measurer, benches: Sequence[Bench], best: list[float]) -> dict[str, Latency]:
    """Time a batch, again where its reference (the first) was slower than it has been; keep the smaller times."""
    found: dict[str, Latency] = {}
    for _ in range(REPEATS):
        timed = measurer.time(benches)
        best.append(timed[benches[0].id].min_ms)
        found = {
            id: item if id not in found or item.min_ms < found[id].min_ms else found[id] for id, item in timed.items()
        }
        if best[-1] <= TOLERANCE * min(best):
            break
    return found


def batches(items: Sequence[Item]) -> Iterator[list[Item]]:
    """Yield a plan in parts that are timed together, each led by the plan's last item: the reference."""
    for start in range(0, len(items), BATCH):
        yield [items[-1], *(item for item in items[start : start + BATCH] if item is not items[-1])]

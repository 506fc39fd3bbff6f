"""Measuring many networks batch by batch, each batch with a reference that tells whether the machine was quiet."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
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


@dataclass
class Rounds:
    """Batches that are timed one after the other, each led by the same reference; their times as of one machine.

    A processor's clock changes over minutes: what slows the reference down in a batch slows the others down as much.
    """

    measurer: Measurer
    _parts: list[tuple[float, dict[str, Latency]]] = field(default_factory=list)
    _best: list[float] = field(default_factory=list)

    def time(self, benches: Sequence[Bench]) -> None:
        """Time a batch whose first network is the reference."""
        found = steadily(self.measurer, benches, self._best)
        self._parts.append((found[benches[0].id].min_ms, found))

    def times(self) -> dict[str, Latency]:
        """Return every network's latency as if each batch's reference had been as fast as the fastest."""
        fastest = min((reference for reference, _ in self._parts), default=0.0)
        return {id: item.scaled(fastest / reference) for reference, part in self._parts for id, item in part.items()}


def timed_in_rounds(
    measurer: Measurer, items: Sequence[Item], bench_of: Callable[[Item], Bench], progress: Callable[[int, int], None]
) -> dict[str, Latency]:
    """Time a plan batch by batch; `progress(done, total)` is told ahead of each and at the end, and may raise.

    Networks are made by `bench_of` when their batch comes: a plan's files need not be held together.
    """
    rounds = Rounds(measurer)
    for number, part in enumerate(batches(items)):
        progress(number * BATCH, len(items))
        rounds.time([bench_of(item) for item in part])
    progress(len(items), len(items))
    return rounds.times()


def batches(items: Sequence[Item]) -> Iterator[list[Item]]:
    """Yield a plan in parts that are timed together, each led by the plan's last item: the reference."""
    for start in range(0, len(items), BATCH):
        yield [items[-1], *(item for item in items[start : start + BATCH] if item is not items[-1])]

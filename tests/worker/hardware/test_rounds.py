"""Batches with a reference: measured again where that was slow, and levelled where it stayed so."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pytest

from worker.hardware.measure import Latency
from worker.hardware.measuring import Bench
from worker.hardware.rounds import BATCH, Rounds, batches, steadily

BENCHES = [Bench("reference", b"", ()), Bench("other", b"", ())]


class Clocked:
    """A device whose speed at each call is given; networks take 1 ms but for those named."""

    def __init__(self, slower: Sequence[float], ms: Mapping[str, float] = {}) -> None:
        self.slower, self.ms, self.calls = slower, ms, 0

    def time(self, benches: Sequence[Bench]) -> dict[str, Latency]:
        factor = self.slower[min(self.calls, len(self.slower) - 1)]
        self.calls += 1
        return {item.id: Latency.of([factor * self.ms.get(item.id, 1.0)]) for item in benches}

    def kernels(self, benches: Sequence[Bench]) -> dict[str, dict[str, float]]:
        return {item.id: {} for item in benches}

    def conditions(self) -> dict[str, Any]:
        return {}


def test_steadily_when_the_reference_was_slow_then_measured_again_and_the_smaller_time_kept() -> None:
    device, best = Clocked([1.0, 2.0, 1.0]), list[float]()
    assert steadily(device, BENCHES, best)["other"].min_ms == 1.0
    assert device.calls == 1
    assert steadily(device, BENCHES, best)["other"].min_ms == 1.0
    assert device.calls == 3


@pytest.mark.parametrize("slower", [(1.0, 1.3), (1.3, 1.0), (1.3, 1.3)])
def test_rounds_when_the_clock_changes_between_batches_then_times_are_of_the_fastest_one(
    slower: tuple[float, float],
) -> None:
    rounds = Rounds(Clocked([slower[0], *[slower[1]] * 4], {"slow": 4.0, "other": 2.0}))
    rounds.time(BENCHES)
    rounds.time([BENCHES[0], Bench("slow", b"", ())])
    found = {id: item.min_ms for id, item in rounds.times().items()}
    assert found == pytest.approx({"reference": min(slower), "other": 2 * min(slower), "slow": 4 * min(slower)})


def test_batches_when_drawn_up_then_each_is_led_by_the_last_item_and_all_are_in_one() -> None:
    items = [*range(2 * BATCH + 3)]
    parts = [*batches(items)]
    assert [part[0] for part in parts] == [items[-1]] * 3
    assert sorted({item for part in parts for item in part}) == items

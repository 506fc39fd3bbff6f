"""What the queue's demonstration says of slices: shares of owners, and who overtook whom."""

from __future__ import annotations

from typing import Any

from benchmarks.queue import Slice, overtaken, shares

ASKED: dict[str, dict[str, Any]] = {
    "ada-1": {"asked": 0.0, "finished": 100.0},
    "ada-2": {"asked": 0.0, "finished": 100.0},
    "ben-1": {"asked": 0.0, "finished": 80.0},
    "ben-urgent": {"asked": 20.0, "finished": 60.0},
}


def test_shares_when_one_owner_has_two_searches_then_time_behind_the_urgent_one_while_both_wait_is_counted() -> None:
    fair = [Slice("ada-1", 0, 65), Slice("ada-2", 65, 100), Slice("ben-1", 0, 80), Slice("ben-urgent", 20, 60)]
    assert shares(fair, ASKED) == 0.5
    unfair = [Slice("ada-1", 0, 75), Slice("ada-2", 0, 75), Slice("ben-1", 75, 80)]
    assert abs(shares(unfair, ASKED) - 5 / 35) < 1e-9


def test_overtaken_when_a_usual_slice_begins_while_the_urgent_search_waits_then_it_is_named() -> None:
    urgent = [Slice("ben-urgent", 30, 45), Slice("ben-urgent", 46, 60)]
    assert overtaken([Slice("ada-1", 5, 29), Slice("ada-1", 47, 70), *urgent], ASKED) == []
    assert overtaken([Slice("ada-2", 25, 40), *urgent], ASKED) == ["ada-2"]

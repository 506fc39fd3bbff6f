"""How many pictures a search looks at follows from the MACs of one."""

from __future__ import annotations

import pytest

from worker.job import pictures


@pytest.mark.parametrize(
    ("macs", "wanted"),
    [
        (1_000_000, {"calibration": 512, "screen": 256, "full": 2048, "fast": 128}),
        (100_000_000, {"calibration": 200, "screen": 60, "full": 500, "fast": 40}),
        (400_000_000, {"calibration": 64, "screen": 32, "full": 128, "fast": 16}),
        (0, {"calibration": 512, "screen": 256, "full": 2048, "fast": 128}),
    ],
)
def test_pictures_when_one_costs_more_then_fewer_are_looked_at(macs: int, wanted: dict[str, int]) -> None:
    assert pictures(macs) == wanted

"""Local time on the days when clocks are set back or forth."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

NEAR = timedelta(minutes=5)


def is_same_hour_again(last: datetime, now: datetime, timezone: str) -> bool:
    """Tell whether `now` is the time of day that `last` was, come again because clocks were set back between them."""
    zone = ZoneInfo(timezone)
    before, after = last.astimezone(zone), now.astimezone(zone)
    set_back = (before.utcoffset() or timedelta()) - (after.utcoffset() or timedelta())
    passed = now.astimezone(UTC) - last.astimezone(UTC)  # moments of one zone would be subtracted by the wall clock
    return set_back > timedelta() and abs(passed - set_back) < NEAR

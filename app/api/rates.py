"""How many requests a key may send: a token bucket per key, in this process.

What is left is told in the `RateLimit` and `RateLimit-Policy` headers of draft-ietf-httpapi-ratelimit-headers.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

from app.problems import Problem

MAX_KEYS = 10_000


@dataclass
class Bucket:
    """What a key has left, as of a moment."""

    left: float
    at: float


class Rates:
    """Buckets that hold `burst` requests and fill up at `per_s`; nothing is limited where that is 0."""

    def __init__(self, per_s: float, burst: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._per_s, self._burst, self._clock = per_s, burst, clock
        self._buckets: dict[str, Bucket] = {}
        self._lock = threading.Lock()

    def take(self, key_id: str) -> dict[str, str]:
        """Take one request out of a key's bucket; return the headers that tell what is left.

        `r` is how many requests are left, `t` in how many seconds the bucket is full again. Raises Problem
        too-many-requests, whose Retry-After is when there will be one.
        """
        if not self._per_s:
            return {}
        with self._lock:
            bucket = self._filled(key_id)
            allowed = bucket.left >= 1.0
            bucket.left -= 1.0 if allowed else 0.0
            left = bucket.left
        headers = self._told(left)
        if not allowed:
            headers["Retry-After"] = str(max(1, math.ceil((1.0 - left) / self._per_s)))
            detail = f"at most {self._burst} requests at once, {self._per_s:g} per second"
            raise Problem("too-many-requests", detail, headers=headers)
        return headers

    def _filled(self, key_id: str) -> Bucket:
        """Return a key's bucket as it is now. Full ones say nothing, and are forgotten where there are too many."""
        at = self._clock()
        if len(self._buckets) >= MAX_KEYS:
            self._buckets = {key: item for key, item in self._buckets.items() if self._left(item, at) < self._burst}
        bucket = self._buckets.setdefault(key_id, Bucket(self._burst, at))
        bucket.left, bucket.at = self._left(bucket, at), at
        return bucket

    def _left(self, bucket: Bucket, at: float) -> float:
        return min(self._burst, bucket.left + (at - bucket.at) * self._per_s)

    def _told(self, left: float) -> dict[str, str]:
        window_s = max(1, math.ceil(self._burst / self._per_s))
        full_s = math.ceil((self._burst - left) / self._per_s)
        return {
            "RateLimit-Policy": f'"key";q={self._burst};w={window_s}',
            "RateLimit": f'"key";r={int(left)};t={full_s}',
        }

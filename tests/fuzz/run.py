"""Reading mutated files: what came out, how long it took, how much memory it asked for."""

from __future__ import annotations

import gc
import signal
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.fuzz.mutate import mutated
from tests.fuzz.seeds import quiet, seeds
from worker.graph.errors import NetworkRefused
from worker.search.evaluate import open_network

SLUGS = frozenset(
    {
        *("compressed-entry", "dynamic-shape-unsupported", "external-data-refused", "invalid-archive", "invalid-graph"),
        *("invalid-onnx", "invalid-tensor", "model-too-large", "overlapping-entries", "trailing-data"),
        *("unrecognised-format", "unsafe-format", "unsupported-format", "unsupported-operator"),
    }
)
MIN_SEEDS = 12
MAX_S = 1.0
HANG_S = 20
MAX_BYTES = 512 << 20


class Hung(BaseException):
    """The reader did not come back."""


@dataclass
class Tally:
    """What a run of mutated files came to."""

    reader: str
    seed: int
    slugs: Counter[str] = field(default_factory=Counter)
    failures: list[dict[str, Any]] = field(default_factory=list)
    slowest_s: float = 0.0
    largest_bytes: int = 0

    def to_json(self) -> dict[str, Any]:
        """Return the tally as JSON has it."""
        return {**vars(self), "slugs": dict(self.slugs.most_common()), "files": self.slugs.total()}


def _hang(*_: object) -> None:
    raise Hung


@contextmanager
def alarm() -> Iterator[None]:
    """Interrupt what takes longer than HANG_S of CPU time."""
    before = signal.signal(signal.SIGVTALRM, _hang)
    signal.setitimer(signal.ITIMER_VIRTUAL, HANG_S)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.signal(signal.SIGVTALRM, before)


def _memory(name: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line.split()[1] for line in lines if line.startswith(name)))


def outcome(data: bytes) -> tuple[str, str]:
    """Return ("read" or the slug, ""), or ("crash", why) for everything that is no named refusal."""
    try:
        with alarm(), quiet():
            open_network(data)
    except NetworkRefused as refusal:
        return (refusal.slug, "") if refusal.slug in SLUGS and refusal.detail else ("crash", f"slug {refusal.slug!r}")
    except (Exception, Hung):
        return "crash", traceback.format_exc(limit=-6)
    return "read", ""


@contextmanager
def own_garbage() -> Iterator[None]:
    """Keep what the process held before out of collections of garbage: their time would count as a reader's."""
    gc.collect()
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


def fuzz(reader: str, count: int, seed: int = 0, told: Callable[[Tally], None] | None = None) -> Tally:
    """Read `count` mutated files; `told` hears of each."""
    held, tally = seeds(reader), Tally(reader, seed)
    held = {name: data for name, data in held.items() if outcome(data)[0] == "read"}
    assert len(held) >= MIN_SEEDS, f"only {sorted(held)} can be read as they are"
    with own_garbage():
        for number in range(count):
            data = mutated(reader, held, number, seed)
            Path("/proc/self/clear_refs").write_text("5")
            idle, start = _memory("VmRSS"), time.process_time()
            slug, why = outcome(data)
            seconds, grown = time.process_time() - start, _memory("VmHWM") - idle
            if not why and seconds > MAX_S:
                why = f"took {seconds:.2f} s"
            if not why and grown > MAX_BYTES:
                why = f"took {grown / 2**20:.0f} MiB"
            tally.slugs[slug] += 1
            tally.slowest_s, tally.largest_bytes = max(tally.slowest_s, seconds), max(tally.largest_bytes, grown)
            if why:
                tally.failures.append({"number": number, "outcome": slug, "why": why})
            if told is not None:
                told(tally)
    return tally

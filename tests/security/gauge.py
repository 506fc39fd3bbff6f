"""A sandboxed child, and what each upload costs it over its idle state."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from tests.hostile import Case
from tests.security import sets
from tests.security.archives import sound
from worker.sandbox import Child, ChildRefused

WAIT_S = 60.0
TICKS = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True)
class Cost:
    """An answer ("read" or a slug) with the seconds that passed, the CPU seconds among them, and the memory's peak."""

    slug: str
    pointer: str
    seconds: float
    cpu_s: float
    peak_bytes: int


class Gauge:
    """One child that has read a sound network and a sound dataset, for which torch loads 80 MiB of its own, and idles.

    What it keeps from one upload to the next counts against the later one.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.child = Child()
        (folder / "sound.pt2").write_bytes(sound())
        (folder / "sound.npz").write_bytes(sets.sound())
        self.child.call("inspect", {"path": str(folder / "sound.pt2")}, WAIT_S)
        self.child.call("inspect_dataset", {"path": str(folder / "sound.npz")}, WAIT_S)
        self.idle = self._memory("VmRSS")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.child.close()

    def measure(self, case: Case) -> Cost:
        """Send one upload through the child."""
        path = self.folder / "upload"
        path.unlink(missing_ok=True)
        path.write_bytes(case.make())
        params = {"path": str(path)}
        if case.kind == "weights":
            params = {"path": str(self.folder / "sound.pt2"), "weights": str(path)}
        # the kernel then counts the peak from here on
        Path(f"/proc/{self.child.pid}/clear_refs").write_text("5")
        cpu, start = self._cpu(), time.perf_counter()
        slug, pointer = self._answer("inspect_dataset" if case.kind == "dataset" else "inspect", params)
        seconds, used = time.perf_counter() - start, self._cpu() - cpu
        return Cost(slug, pointer, seconds, used, self._memory("VmHWM") - self.idle)

    def _answer(self, method: str, params: dict[str, str]) -> tuple[str, str]:
        try:
            self.child.call(method, params, WAIT_S)
        except ChildRefused as refusal:
            return refusal.slug, refusal.errors[0]["pointer"] if refusal.errors else ""
        return "read", ""

    def _memory(self, name: str) -> int:
        lines = Path(f"/proc/{self.child.pid}/status").read_text().splitlines()
        return 1024 * int(next(line.split()[1] for line in lines if line.startswith(name)))

    def _cpu(self) -> float:
        fields = Path(f"/proc/{self.child.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / TICKS

"""Measuring networks, here or on a device: what is measured, by whom, and a measurer on this machine.

Imports onnxruntime and numpy only, so that a device without torch can measure. Networks are timed against each other
in interleaved rounds on one thread pinned to one core; the minimum repeats within a percent, where medians drift.
"""

from __future__ import annotations

import contextlib
import json
import os
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from worker.hardware.host import describe
from worker.hardware.measure import WARM_UP, Latency, fed, open_session

ROUNDS, PROFILED, SHARE = 40, 20, 24


@dataclass(frozen=True)
class Bench:
    """One network to measure: the ONNX file, and (shape with the batch, numpy dtype) of each input in order."""

    id: str
    model: bytes
    inputs: tuple[tuple[tuple[int, ...], str], ...]

    @classmethod
    def told(cls, id: str, model: bytes, inputs: Sequence[Sequence[Any]]) -> Bench:
        """Return the bench whose inputs are given as `ports` gives them."""
        return cls(id, model, tuple((tuple(shape), str(dtype)) for shape, dtype in inputs))

    @property
    def ports(self) -> list[list[Any]]:
        """Return the inputs as JSON: [[shape, dtype], ...]."""
        return [[list(shape), dtype] for shape, dtype in self.inputs]

    def example(self) -> list[NDArray[Any]]:
        """Return one input each: reals from a normal distribution, ids zero; equal benches give equal arrays."""
        rng = np.random.default_rng(0)
        return [
            rng.standard_normal(shape).astype(dtype) if np.dtype(dtype).kind == "f" else np.zeros(shape, dtype)
            for shape, dtype in self.inputs
        ]


class Measurer(Protocol):
    """Whatever can time networks: this machine, or an agent on another."""

    def time(self, benches: Sequence[Bench]) -> dict[str, Latency]:
        """Return the latency of each bench by id, all timed against each other."""
        ...

    def kernels(self, benches: Sequence[Bench]) -> dict[str, dict[str, float]]:
        """Return by bench id the milliseconds of each kernel the runtime ran, by the kernel's node name."""
        ...

    def conditions(self) -> dict[str, Any]:
        """Return what the figures depend on: processor, features, runtime, governor, load, pinning."""
        ...


class LocalMeasurer:
    """Measures in this process, on one core, with `rounds` interleaved runs of each network."""

    def __init__(self, rounds: int = ROUNDS, profiled: int = PROFILED) -> None:
        self._rounds, self._profiled = rounds, profiled

    def time(self, benches: Sequence[Bench]) -> dict[str, Latency]:
        """Return minimum and median over the rounds; at most `SHARE` networks share the rounds (and the caches)."""
        found: dict[str, Latency] = {}
        with pinned():
            for start in range(0, len(benches), SHARE):
                found |= self._timed(benches[start : start + SHARE])
        return found

    def _timed(self, benches: Sequence[Bench]) -> dict[str, Latency]:
        rng = np.random.default_rng(0)
        running = {bench.id: _Running(bench) for bench in benches}
        times: dict[str, list[float]] = {bench.id: [] for bench in benches}
        for _ in range(self._rounds):
            for index in rng.permutation(len(benches)):
                name = benches[index].id
                running[name].run_ms()  # the caches are the network's own again
                times[name].append(running[name].run_ms())
        return {name: Latency.of(runs) for name, runs in times.items()}

    def kernels(self, benches: Sequence[Bench]) -> dict[str, dict[str, float]]:
        """Return the minimum of each kernel's time over the profiled runs, as the runtime's profiler reports it."""
        with pinned(), tempfile.TemporaryDirectory(prefix="tightfit-profile-") as folder:
            return {bench.id: self._profile(bench, Path(folder)) for bench in benches}

    def _profile(self, bench: Bench, folder: Path) -> dict[str, float]:
        running = _Running(bench, str(folder / "run"))
        for _ in range(self._profiled):
            running.run_ms()
        file = Path(running.session.end_profiling())
        try:
            return kernel_times(json.loads(file.read_text()))
        finally:
            file.unlink()

    def conditions(self) -> dict[str, Any]:
        """Return what the figures of this machine depend on."""
        return {**describe(), "governor": governor(), "load": load(), "threads": 1, "pinned": can_pin()}


class _Running:
    """An open session and what it is fed."""

    def __init__(self, bench: Bench, profile: str | None = None) -> None:
        self.session = open_session(bench.model, profile)
        self._feed = fed(self.session, bench.example())
        for _ in range(WARM_UP):
            self.run_ms()

    def run_ms(self) -> float:
        start = time.perf_counter()
        self.session.run(None, self._feed)
        return (time.perf_counter() - start) * 1e3


def kernel_times(events: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Return the least milliseconds of each kernel in a profile of several runs, by node name, in execution order."""
    found: dict[str, float] = {}
    for event in events:
        name = str(event.get("name", ""))
        if event.get("cat") == "Node" and name.endswith("_kernel_time"):
            key, spent = name.removesuffix("_kernel_time"), float(event["dur"]) / 1e3
            found[key] = min(found.get(key, spent), spent)
    return found


@contextlib.contextmanager
def pinned() -> Iterator[None]:
    """Keep this thread on one core (the last it may use) within the block, where the system allows it."""
    if not can_pin():
        yield
        return
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {max(before)})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def can_pin() -> bool:
    """Tell whether threads can be kept on a core here."""
    return hasattr(os, "sched_setaffinity")


def governor() -> str:
    """Return the frequency governor of the first core; "unknown" where the system does not say."""
    file = Path("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor")
    return file.read_text().strip() if file.exists() else "unknown"


def load() -> float | None:
    """Return the load average of the last minute; None where the system does not say."""
    return round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None

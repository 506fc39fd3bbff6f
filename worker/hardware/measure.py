"""Latency in ONNX Runtime: one thread, batch 1, interleaved runs.

The minimum over interleaved runs repeats within a percent even on a busy machine, where medians drift several-fold;
both are reported, and networks are compared by their minima from the same rounds.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

WARM_UP, ROUNDS, MAX_SECONDS = 5, 60, 10.0


@dataclass(frozen=True)
class Latency:
    """Milliseconds of one batch-1 inference over `runs` interleaved runs."""

    min_ms: float
    median_ms: float
    runs: int
    p95_ms: float = 0.0

    @classmethod
    def of(cls, runs: Sequence[float]) -> Latency:
        """Return the figures of one network's runs in milliseconds: minimum, median, count, 95th percentile."""
        return cls(min(runs), statistics.median(runs), len(runs), float(np.percentile(runs, 95)))

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Latency:
        """Rebuild what `to_json` wrote."""
        return cls(data["min_ms"], data["median_ms"], data["runs"], data["p95_ms"])

    def scaled(self, factor: float) -> Latency:
        """Return the figures of a machine that takes `factor` times as long."""
        return Latency(self.min_ms * factor, self.median_ms * factor, self.runs, self.p95_ms * factor)

    def to_json(self) -> dict[str, float]:
        """Return the figures as JSON."""
        return {"min_ms": self.min_ms, "median_ms": self.median_ms, "p95_ms": self.p95_ms, "runs": self.runs}


def open_session(model: bytes, profile: str | None = None) -> ort.InferenceSession:
    """Open a model for one thread on the CPU with the default optimisations; `profile` begins its profile's file name.

    Raises whatever onnxruntime raises for a file it cannot run (its exceptions share no public base class).
    """
    options = ort.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 4  # a refused file is reported through the exception
    if profile is not None:
        options.enable_profiling, options.profile_file_prefix = True, profile
    return ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def measure(
    models: Mapping[str, bytes], example: Sequence[NDArray[Any]], rounds: int = ROUNDS, max_seconds: float = MAX_SECONDS
) -> dict[str, Latency]:
    """Time several models against each other on one row: an array [1, ...] per input, in the models' order.

    Every round runs each model once, in an order shuffled per round; stops after `rounds` or `max_seconds`.
    """
    rng = np.random.default_rng(0)
    sessions = {name: open_session(model) for name, model in models.items()}
    for session in sessions.values():
        for _ in range(WARM_UP):
            _run_ms(session, example)
    times: dict[str, list[float]] = {name: [] for name in sessions}
    deadline = time.monotonic() + max_seconds
    for index in range(rounds):
        if index and time.monotonic() > deadline:
            break
        for name in rng.permutation(list(sessions)):
            times[str(name)].append(_run_ms(sessions[str(name)], example))
    return {name: Latency.of(runs) for name, runs in times.items()}


def fed(session: ort.InferenceSession, inputs: Sequence[NDArray[Any]]) -> dict[str, NDArray[Any]]:
    """Return arrays by the names of a session's inputs."""
    names = [item.name for item in session.get_inputs()]
    return dict(zip(names, (np.ascontiguousarray(item) for item in inputs), strict=True))


def _run_ms(session: ort.InferenceSession, example: Sequence[NDArray[Any]]) -> float:
    feed = fed(session, example)
    start = time.perf_counter()
    session.run(None, feed)
    return (time.perf_counter() - start) * 1e3

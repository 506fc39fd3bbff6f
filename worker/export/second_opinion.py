"""What a second runtime makes of an exported file: OpenVINO, where its package is installed beside the worker's.

It is told as information and never fails a verification: the file is made for ONNX Runtime, and others fuse and round
otherwise. A process of its own runs it, so that whatever it does ends there.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from app.domain.graph import Port
from worker.export.agreement import Agreement, agreement
from worker.search.metrics import is_scores

RUNTIME = "OpenVINO"
MODULE = "worker.export.openvino_run"
TIME_S = 300.0
MIN_TOP1, MIN_SQNR_DB = 0.98, 20.0
"""Below these its answers are noted as different."""
MAX_ERROR = 300

Arrays = Sequence[NDArray[Any]]


@dataclass(frozen=True)
class Opinion:
    """How a runtime's outputs follow the simulation's, by output; `error` says why there are none."""

    version: str
    outputs: dict[str, Agreement] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    error: str | None = None

    @property
    def agreement(self) -> Agreement | None:
        """Return the agreement of the output that follows the simulation least."""
        return min(self.outputs.values(), key=lambda item: item.sqnr_db, default=None)

    def to_json(self) -> dict[str, Any]:
        """Return runtime, version, agreements and error as JSON."""
        return {
            "runtime": RUNTIME,
            "version": self.version,
            "agreement": self.agreement and self.agreement.to_json(),
            "outputs": {name: item.to_json() for name, item in self.outputs.items()},
            "error": self.error,
        }


def is_available() -> bool:
    """Tell whether OpenVINO is installed; it is not imported for that."""
    return importlib.util.find_spec("openvino") is not None


def second_opinion(model: bytes, inputs: Arrays, simulated: Arrays, ports: Sequence[Port]) -> Opinion | None:
    """Run a file in OpenVINO and compare its outputs with the simulation's on the same rows; None where it is not
    installed. Never raises: what goes wrong there is the opinion's `error`."""
    if not is_available():
        return None
    version = ""
    try:
        version = importlib.metadata.version("openvino")
        outputs = run_openvino(model, inputs)
        pairs = zip(ports, simulated, outputs, strict=True)
        found = {port.name: agreement(one, other, port.axis) for port, one, other in pairs}
    except Exception as error:  # whatever another runtime makes of a file is told, not raised
        text = f"{type(error).__name__}: {str(error)[:MAX_ERROR]}"
        return Opinion(version, notes=(f"{RUNTIME} {version} did not run the ONNX file: {text}",), error=text)
    return Opinion(version, found, _notes(version, found, ports))


def run_openvino(model: bytes, inputs: Arrays) -> list[NDArray[Any]]:
    """Return an ONNX file's outputs in OpenVINO. Raises RuntimeError with the last line of what it said, or
    subprocess.TimeoutExpired."""
    graph = onnx.load_from_string(model).graph
    names = {"inputs": [item.name for item in graph.input], "outputs": [item.name for item in graph.output]}
    with tempfile.TemporaryDirectory(prefix="tightfit-openvino-") as place:
        folder = Path(place)
        (folder / "model.onnx").write_bytes(model)
        (folder / "names.json").write_text(json.dumps(names))
        for index, value in enumerate(inputs):
            np.save(folder / f"in{index}.npy", value)
        command = [sys.executable, "-m", MODULE, place]
        done = subprocess.run(command, capture_output=True, text=True, timeout=TIME_S, check=False)
        if done.returncode:
            raise RuntimeError(_last_line(done.stderr) or f"exit code {done.returncode}")
        return [np.load(folder / f"out{index}.npy", allow_pickle=False) for index in range(len(names["outputs"]))]


def _last_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1] if lines else ""


def _notes(version: str, found: dict[str, Agreement], ports: Sequence[Port]) -> tuple[str, ...]:
    """Say which outputs differ strongly."""
    told = []
    for port in ports:
        item = found[port.name]
        is_other = is_scores(port) and item.top1 < MIN_TOP1
        if is_other or item.sqnr_db < MIN_SQNR_DB:
            same = f", {100 * item.top1:.1f} % of the answers are the same" if is_scores(port) else ""
            told.append(
                f"{RUNTIME} {version} computes something else: {port.name} follows the simulation within "
                f"{item.sqnr_db:.1f} dB{same}; measure the accuracy there before the file is used with it"
            )
    return tuple(told)

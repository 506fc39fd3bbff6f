"""Runs an ONNX file in OpenVINO: `python -m worker.export.openvino_run FOLDER`, a process of its own.

The folder holds `model.onnx`, `names.json` ({"inputs": [...], "outputs": [...]}, tensor names) and, by the number of an
input, `in0.npy`, ...; `out0.npy`, ... come to lie beside them.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np

BATCH = 128


def main(folder: Path) -> None:
    """Answer every row with the session any user would open, but of one thread."""
    # it would tell its maker of every use; where it can't be imported a stub takes its place
    sys.modules["openvino_telemetry"] = None  # type: ignore[assignment]
    import openvino

    names = json.loads((folder / "names.json").read_text())
    core = openvino.Core()
    model = core.compile_model(core.read_model(folder / "model.onnx"), "CPU", {"INFERENCE_NUM_THREADS": 1})
    held = {name: np.load(folder / f"in{index}.npy") for index, name in enumerate(names["inputs"])}
    rows = len(next(iter(held.values())))
    found: list[list[Any]] = [[] for _ in names["outputs"]]
    for start in range(0, rows, BATCH):
        answers = model({name: value[start : start + BATCH] for name, value in held.items()})
        for parts, name in zip(found, names["outputs"], strict=True):
            parts.append(np.array(answers[name]))
    for index, parts in enumerate(found):
        np.save(folder / f"out{index}.npy", np.concatenate(parts))


if __name__ == "__main__":
    main(Path(sys.argv[1]))

"""Sizes on the same network: tightfit's W8A8 file beside ONNX Runtime's own static quantization and float weights.

AIMET and ModelOpt are not run here. AIMET's `QuantizationSimModel.export` writes the float ONNX file with encodings
beside it (qualcomm/aimet#2816); a torch network that ModelOpt quantized is exported with Q/DQ nodes behind float
weights (NVIDIA's TensorRT documentation, "Explicit Quantization"). Both keep every weight as a float32: the bytes of
those weights alone are a lower bound of such a file. What either tool may export as integers is not compared.
"""

from __future__ import annotations

import logging
import math
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
from onnxruntime.quantization.shape_inference import quant_pre_process

from app.domain.space import widest
from benchmarks.budgets import DEVICE
from benchmarks.networks import network, pictures
from tests.worker.export.written import written
from worker.graph.write_onnx import write_float
from worker.search.evaluate import open_evaluator

ROWS = 64
FRACTION = 1 / 3


class Rows(CalibrationDataReader):  # type: ignore[misc]  # onnxruntime carries no types
    """Hands out pictures one by one."""

    def __init__(self, name: str, rows: NDArray[np.float32]) -> None:
        self._left = iter([{name: row[None]} for row in rows])

    def get_next(self) -> dict[str, NDArray[np.float32]] | None:
        """Return the next picture, or None."""
        return next(self._left, None)


def measure(name: str) -> dict[str, Any]:
    """Return the bytes of three files, and of the float file's weights without graph and biases."""
    torch.set_num_threads(1)
    opened = network(name)
    evaluator = open_evaluator(opened, pictures(name), DEVICE)
    float_file = write_float(opened.folded)
    ours = written(evaluator.compress(widest(opened.graph, 8), "fast"))
    rows = pictures(name)["calibration"].inputs[0][:ROWS].numpy()
    theirs = quantized_by_onnxruntime(float_file, rows)
    weights = sum(4 * math.prod(layer.weight_shape) for layer in opened.graph.layers)
    return {"ours": len(ours), "onnxruntime": len(theirs), "float": len(float_file), "float_weights": weights}


def quantized_by_onnxruntime(model: bytes, rows: NDArray[np.float32]) -> bytes:
    """Return the network as ONNX Runtime quantizes it statically: QDQ, per channel, uint8 activations, int8 weights."""
    logging.getLogger().setLevel(logging.ERROR)
    with tempfile.TemporaryDirectory() as folder:
        plain, prepared, made = (Path(folder) / f"{step}.onnx" for step in ("plain", "prepared", "made"))
        plain.write_bytes(model)
        quant_pre_process(str(plain), str(prepared))
        quantize_static(
            str(prepared),
            str(made),
            Rows(onnx.load_from_string(model).graph.input[0].name, rows),
            quant_format=QuantFormat.QDQ,
            per_channel=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
        )
        return made.read_bytes()

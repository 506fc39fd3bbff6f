"""The same network at several opsets: bytes, load time, kernels, and whether the answers are bit for bit the same."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import torch

from app.domain.opsets import DEFAULT, LOWEST
from benchmarks.budgets import DEVICE, same_everywhere
from benchmarks.networks import network, pictures
from tests.worker.export.written import written
from worker.export.audit import fused_ops
from worker.export.verify import run_onnx
from worker.hardware.measure import open_session
from worker.search.evaluate import open_evaluator

OPSETS = (LOWEST, 17, DEFAULT)
"""Of plain convolutional networks all those below 21, with which INT4 came, write the same."""
WIDTHS = (8, 4, 2)
LOADS = 15


def measure(name: str) -> dict[str, Any]:
    """Write a network at every width and opset and compare with the file of the default opset on 2,000 pictures."""
    torch.set_num_threads(1)
    opened = network(name)
    evaluator = open_evaluator(opened, pictures(name), DEVICE)
    shown = pictures(name)["holdout"].head(2000).inputs
    found: dict[str, Any] = {}
    for bits in WIDTHS:
        net = evaluator.compress(same_everywhere(opened.graph, bits, 8))
        files = {opset: written(net, opset) for opset in OPSETS}
        usual, kernels = run_onnx(files[DEFAULT], shown)[0], fused_ops(files[DEFAULT])
        found[f"w{bits}a8"] = {
            str(opset): {
                "bytes": len(data),
                "load_ms": load_ms(data),
                "same_bits": bool(np.array_equal(run_onnx(data, shown)[0], usual)),
                "same_kernels": fused_ops(data) == kernels,
            }
            for opset, data in files.items()
        }
    return found


def load_ms(data: bytes) -> float:
    """Return the least time of opening a session, in milliseconds."""
    found = []
    for _ in range(LOADS):
        start = time.perf_counter()
        open_session(data)
        found.append(1e3 * (time.perf_counter() - start))
    return min(found)

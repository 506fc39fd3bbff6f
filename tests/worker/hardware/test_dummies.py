"""Dummy files run the kernels that the kernel model lists: counted in ONNX Runtime's own profile."""

from __future__ import annotations

import json
from collections import Counter
from functools import cache
from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest

from app.domain.graph import ModelGraph
from app.domain.kernels import kernels
from app.domain.space import Assignment, widest
from tests.zoo.sources import Source, exported
from worker.hardware import host
from worker.hardware.dummies import dummy_bench
from worker.hardware.measuring import Bench
from worker.search.evaluate import Opened, open_network

OURS = {
    **dict.fromkeys(("QLinearConv", "Conv"), "conv"),
    **dict.fromkeys(("QGemm", "Gemm", "FusedGemm"), "linear"),
    **dict.fromkeys(("QLinearAdd", "Add"), "add"),
    **dict.fromkeys(("NhwcMaxPool", "MaxPool"), "max_pool2d"),
    **dict.fromkeys(("QLinearAveragePool", "AveragePool"), "avg_pool2d"),
    **dict.fromkeys(("QLinearGlobalAveragePool", "GlobalAveragePool"), "mean"),
    **dict.fromkeys(("QLinearConcat", "Concat"), "concat"),
    **dict.fromkeys(("ReorderOutput", "ReorderInput"), "reorder"),
    "BatchNormalization": "batch_norm",
    "QuantizeLinear": "quantize",
    "DequantizeLinear": "dequantize",
    "Transpose": "transpose",
    "Clip": "clip",
}
SAME = {"depthwise": "conv", "max_pool2d_plain": "max_pool2d", "mean_plain": "mean", "kept_float": "clip"}


@cache
def opened(name: str) -> Opened:
    return open_network(exported(name, Source("pt2")))


def assignment(graph: ModelGraph, weights: int, activations: int) -> Assignment:
    wide = widest(graph, weights)
    fixed = {"input": min(8, activations) if activations < 32 else 32, "output": 32}
    bits = {item.id: fixed.get(item.role, activations) for item in graph.activations}
    return Assignment(wide.keep, wide.weight_bits, bits)


def run_by_the_runtime(bench: Bench, folder: Path) -> Counter[str]:
    options = ort.SessionOptions()
    options.enable_profiling, options.profile_file_prefix = True, str(folder / "profile")
    options.log_severity_level = 4
    session = ort.InferenceSession(bench.model, options, providers=["CPUExecutionProvider"])
    session.run(None, dict(zip([item.name for item in session.get_inputs()], bench.example(), strict=True)))
    events = json.loads(Path(session.end_profiling()).read_text())
    ran = [event["args"]["op_name"] for event in events if event["name"].endswith("_kernel_time")]
    return Counter(OURS.get(op, op) for op in ran if op != "Flatten")


@pytest.mark.parametrize("bits", [(32, 32), (4, 8), (4, 6), (8, 8)], ids=str)
@pytest.mark.parametrize("name", ["vgg", "mobilenet_v2"])
def test_kernels_when_counted_in_the_runtimes_profile_then_the_same(
    name: str, bits: tuple[int, int], tmp_path: Path
) -> None:
    if bits == (32, 32) and not any(item.startswith("avx512") for item in host.describe()["features"]):
        pytest.skip("float convolutions run on blocks of 8 channels here; the list is that of blocks of 16 (AVX-512)")
    network = opened(name)
    chosen = assignment(network.graph, *bits)
    listed = Counter(SAME.get(work.op, work.op) for work in kernels(network.graph, chosen) if work.op != "fused_add")
    assert listed == run_by_the_runtime(dummy_bench("x", network, chosen), tmp_path)


def test_dummy_when_channels_are_cut_then_the_file_holds_the_kept_ones() -> None:
    network = opened("resnet")
    wide = assignment(network.graph, 8, 8)
    keep = {group.id: group.channels if group.frozen else group.channels // 2 for group in network.graph.groups}
    half = dummy_bench("x", network, Assignment(keep, wide.weight_bits, wide.activation_bits))
    assert len(half.model) < len(dummy_bench("x", network, wide).model)
    assert half.inputs == (((1, 3, 16, 16), "float32"),)
    session = ort.InferenceSession(half.model, providers=["CPUExecutionProvider"])
    (result,) = session.run(None, {"x": np.zeros((1, 3, 16, 16), np.float32)})
    assert result.shape == (1, 10)

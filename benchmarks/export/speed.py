"""Speed and size of a ResNet of a million parameters, in one interleaved run: one thread, batch 1."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import onnx
import torch

from app.domain.device import DeviceProfile, MemoryPool, Throughput
from benchmarks import latency_networks
from benchmarks.budgets import same_everywhere
from benchmarks.networks import pictures
from tests.worker.export.written import written
from worker.data import RoleData
from worker.export.audit import fused_ops
from worker.export.checkpoint import dequantized
from worker.export.packing import packed_bytes
from worker.export.verify import run_onnx
from worker.graph.write_onnx import write_float
from worker.hardware import host
from worker.hardware.measure import measure as measure_latency
from worker.quant.layer import QuantizedLayer
from worker.quant.network import CompressedNetwork
from worker.search.evaluate import EvaluatorOptions, open_evaluator

NETWORK = "resnet20_wide"
VARIANTS = {
    "w8a8": (8, 1.0),
    "half w8a8": (8, 0.5),
    "w4a8": (4, 1.0),
    "w3a8": (3, 1.0),
    "w2a8": (2, 1.0),
}
PACKED = ("w4a8", "w3a8", "w2a8")
ROUNDS = 300
OVERHEAD = 200_000
DEVICE = DeviceProfile(
    name="export",
    unit="cpu",
    pairs={"default": tuple((bits, 8) for bits in (8, 4, 3, 2))},
    compute=(Throughput(8, 8, 20.0),),
    activation_pool=MemoryPool(None, 10.0),
    weight_store=MemoryPool(None, 10.0),
)


def measure() -> dict[str, Any]:
    """Export every variant, time all files together, and look at what they hold and run as."""
    torch.set_num_threads(1)
    network = latency_networks.opened(NETWORK)
    shown = pictures("resnet8_cifar10")
    data = {role: RoleData((item.inputs[0][:512],)) for role, item in shown.items()}
    evaluator = open_evaluator(network, data, DEVICE, EvaluatorOptions(calibration=256))
    nets = {
        name: evaluator.compress(same_everywhere(network.graph, weight, 8, keep), "fast")
        for name, (weight, keep) in VARIANTS.items()
    }
    files = {"float": write_float(network.folded)} | {name: written(net) for name, net in nets.items()}
    wide = {name: written(_in_8_bits(nets[name])) for name in PACKED}
    few = [data["holdout"].inputs[0][:64]]
    times = measure_latency(files, [np.zeros((1, *network.graph.input_shape), np.float32)], ROUNDS, 300.0)
    base, kernels = times["float"].min_ms, {name: fused_ops(file) for name, file in files.items()}
    variants = {
        name: {
            "bytes": len(file),
            "ms": times[name].min_ms,
            "speedup": base / times[name].min_ms,
            "kernels": {op: count for op, count in kernels[name].items() if "Conv" in op or "Linear" in op},
            **(_held(file, nets[name], kernels[name]) if name in nets else {}),
        }
        for name, file in files.items()
    }
    same = {name: bool(np.array_equal(run_onnx(files[name], few)[0], run_onnx(wide[name], few)[0])) for name in wide}
    parameters = sum(item.numel() for item in network.folded.parameters())
    about = host.describe()
    processor = {"model": about.get("processor"), "features": about.get("features")}
    return {"variants": variants, "identical": same, "parameters": parameters, "processor": processor}


def claims(found: Mapping[str, Any]) -> list[tuple[str, bool | None]]:
    """Return what is claimed of the figures; speeds only where the processor has an integer dot product."""
    items = found["variants"]
    has_vnni = host.has_integer_dot_product(found["processor"]["features"])
    speeds = {name: items[name]["speedup"] for name in items}
    slowest = min(speeds[name] / speeds["w8a8"] for name in PACKED)
    weights = max(items[name]["weights_over_packed"] for name in PACKED)
    overhead = max(items[name]["overhead"] for name in PACKED)
    integer = all(items[name]["is_integer"] for name in VARIANTS)
    return [
        (f"W8A8 at least 2.5 times as fast: {speeds['w8a8']:.2f}", speeds["w8a8"] >= 2.5 if has_vnni else None),
        (f"half width at least 5 times: {speeds['half w8a8']:.2f}", speeds["half w8a8"] >= 5 if has_vnni else None),
        (f"4, 3 and 2 bits within 5 % of W8A8's speed: {slowest:.3f}", slowest >= 0.95 if has_vnni else None),
        ("every convolution a QLinearConv", integer),
        (f"weights within 10 % of packed bits and scales: {100 * (weights - 1):.1f} % over", weights <= 1.1),
        (f"files at most 200 kB over that: {overhead / 1e3:.0f} kB", overhead <= OVERHEAD),
        ("outputs of packed files equal those of int8 containers, bit by bit", all(found["identical"].values())),
    ]


def _in_8_bits(net: CompressedNetwork) -> CompressedNetwork:
    """Return the same integers in int8 containers."""
    return replace(net, layers={name: replace(layer, bits=8) for name, layer in net.layers.items()})


def _held(file: bytes, net: CompressedNetwork, kernels: Mapping[str, int]) -> dict[str, Any]:
    """Return how much a file's weights take over their packed bits and scales, what else it holds, and how it runs."""
    held = {item.name: len(item.raw_data) for item in onnx.load_from_string(file).graph.initializer}
    packed = sum(_packed_bytes(layer) for layer in net.layers.values())
    weights = sum(held[f"{name}.w"] + held[f"{name}.w.scale"] for name in net.layers)
    convolutions = sum(dequantized(layer).ndim == 4 for layer in net.layers.values())
    return {
        "weights_over_packed": weights / packed,
        "overhead": len(file) - packed,
        "is_integer": kernels.get("QLinearConv", 0) == convolutions and not kernels.get("Conv", 0),
    }


def _packed_bytes(layer: QuantizedLayer) -> int:
    """Return the bytes of a layer's integers at their true width and of one float32 scale per output channel."""
    assert layer.weight_int is not None
    shape = layer.weight_int.shape
    return packed_bytes(math.prod(shape), layer.bits) + 4 * shape[0]

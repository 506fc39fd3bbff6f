"""From a network of any family to its files: compressed, exported, run, stored, loaded, counted again."""

from __future__ import annotations

import functools
import random
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import onnx
import pytest

import tightfit
from app.domain.cost import count
from app.domain.device import DeviceProfile, MemoryPool, Throughput
from app.domain.graph import ModelGraph
from app.domain.space import Assignment, SpaceSpec, build_space
from tests.worker.export.reading import read_by_the_document, with_weights
from tests.worker.export.written import written
from tests.zoo import ZOO
from tests.zoo.running import difference, outputs
from tests.zoo.sources import Source, exported
from worker.data import RoleData
from worker.export.agreement import sqnr_db
from worker.export.audit import differences
from worker.export.checkpoint import dequantized, read_checkpoint, write_checkpoint
from worker.export.recount import recount
from worker.export.verify import Outputs, run_onnx, simulate
from worker.quant.compressor import Repair
from worker.quant.network import CompressedNetwork
from worker.search.evaluate import Evaluator, open_evaluator, open_network

DEVICE = DeviceProfile(
    name="bench",
    unit="npu",
    pairs={"default": ((8, 8), (4, 8), (3, 8))},
    compute=(Throughput(8, 8, 4.0),),
    activation_pool=MemoryPool(None, 2.0),
    weight_store=MemoryPool(None, 1.0),
)
ROWS, CHECKED = 48, 16
MIN_SQNR_DB = 30.0
KINDS = ("eight bits", "random")
CASES = [(name, kind) for name in ZOO for kind in KINDS]


@dataclass(frozen=True)
class Made:
    """A compressed network, its files, and what the simulation answers on rows it was not calibrated on."""

    graph: ModelGraph
    network: CompressedNetwork
    onnx: bytes
    checkpoint: bytes
    simulated: Outputs


@functools.cache
def evaluator(name: str) -> Evaluator:
    data = RoleData(ZOO[name].inputs(ROWS))
    network = open_network(exported(name, Source("pt2")), "pt2")
    return open_evaluator(network, {"calibration": data, "evaluation": data, "holdout": data}, DEVICE)


def assignment(graph: ModelGraph, name: str, kind: str) -> Assignment:
    """Return everything kept at 8 bits, or any legal assignment."""
    space, rng = build_space(graph, DEVICE, SpaceSpec(min_keep=0.5)), random.Random(name)
    free = kind == "random"
    return Assignment(
        {group: rng.choice(options) if free else max(options) for group, options in space.keep.items()},
        {layer: rng.choice(options) if free else max(options) for layer, options in space.weight_bits.items()},
        {site: max(options) for site, options in space.activation_bits.items()},
    )


@functools.cache
def made(name: str, kind: str) -> Made:
    owner = evaluator(name)
    network = owner.compress(assignment(owner.graph, name, kind))
    simulated = simulate(network, ZOO[name].inputs(CHECKED, seed=5))
    return Made(owner.graph, network, written(network), write_checkpoint(network, {}), simulated)


@pytest.mark.parametrize(("name", "kind"), CASES)
def test_network_when_exported_then_onnxruntime_follows_the_simulation(name: str, kind: str) -> None:
    found, inputs = made(name, kind), ZOO[name].inputs(CHECKED, seed=5)
    onnx.checker.check_model(onnx.load_from_string(found.onnx), full_check=True)
    ran = run_onnx(found.onnx, inputs)
    assert [item.shape for item in ran] == [item.shape for item in found.simulated]
    for one, other in zip(found.simulated, ran, strict=True):
        assert sqnr_db(one, other) >= MIN_SQNR_DB


@pytest.mark.parametrize("name", ["convnext", "vit", "text_encoder", "causal_decoder", "gru_tagger"])
def test_network_when_activations_have_16_bits_then_onnxruntime_does_not_narrow_them(name: str) -> None:
    owner, inputs = evaluator(name), ZOO[name].inputs(CHECKED, seed=5)
    plan = assignment(owner.graph, name, "random")
    wide = {site: min(16, 2 * bits) for site, bits in plan.activation_bits.items()}
    network = owner.compress(replace(plan, activation_bits=wide))
    ran = run_onnx(written(network), inputs)
    assert min(sqnr_db(*pair) for pair in zip(simulate(network, inputs), ran, strict=True)) >= 80.0


@pytest.mark.parametrize(("name", "kind"), CASES)
def test_network_when_exported_then_the_file_holds_the_simulations_tensors(name: str, kind: str) -> None:
    found = made(name, kind)
    assert differences(found.onnx, found.network) == []


@pytest.mark.parametrize(("name", "kind"), CASES)
def test_network_when_stored_and_loaded_then_equal_outputs(name: str, kind: str) -> None:
    found = made(name, kind)
    network, _ = read_checkpoint(found.checkpoint)
    assert write_checkpoint(network, {}) == found.checkpoint
    for one, other in zip(found.simulated, simulate(network, ZOO[name].inputs(CHECKED, seed=5)), strict=True):
        assert np.array_equal(one, other)


@pytest.mark.parametrize(("name", "kind"), CASES)
def test_network_when_loaded_then_as_simulated_or_as_the_float_network_with_the_weights_numpy_reads(
    name: str, kind: str, tmp_path: Path
) -> None:
    found, inputs, file = made(name, kind), ZOO[name].inputs(CHECKED, seed=5), tmp_path / "net.tightfit"
    file.write_bytes(found.checkpoint)
    read = read_by_the_document(file)
    assert read.integers.keys() == {item.name for item in found.network.layers.values() if item.weight_int is not None}
    for layer in found.network.layers.values():
        np.testing.assert_array_equal(read.weights[layer.name], dequantized(layer))
        if layer.weight_int is not None:
            np.testing.assert_array_equal(read.integers[layer.name], layer.weight_int)
    simulated = outputs(tightfit.load(file), inputs)
    assert all(np.array_equal(one.numpy(), other) for one, other in zip(simulated, found.simulated, strict=True))
    plain = with_weights(evaluator(name).pruned(found.network.assignment), read)
    assert difference(outputs(tightfit.load(file, "dequantized"), inputs), outputs(plain, inputs)) <= 1e-6


@pytest.mark.parametrize(("name", "kind"), CASES)
def test_network_when_counted_from_its_checkpoint_then_equal_to_the_cost_model(name: str, kind: str) -> None:
    found = made(name, kind)
    modelled = count(found.graph, found.network.assignment, DEVICE)
    counted = recount(found.checkpoint, DEVICE).totals()
    assert counted == {metric: modelled.value(metric) for metric in counted}
    assert counted["weight_bytes"] > 0


@pytest.mark.parametrize("name", ["text_encoder", "causal_decoder", "vit", "convnext", "unet", "fcn"])
def test_compress_when_layers_read_tokens_or_are_transposed_then_repair_pays(name: str) -> None:
    owner = evaluator(name)
    plan = assignment(owner.graph, name, "random")
    repairs: tuple[Repair, ...] = ("sequential", "fast", "none")
    loss = {repair: owner.evaluate(plan, "full", repair).metrics["kl"] for repair in repairs}
    assert loss["sequential"] < loss["none"]
    assert loss["fast"] < loss["none"]


def test_network_when_its_file_names_the_inputs_then_the_export_keeps_the_names() -> None:
    network = open_network(exported("two_in_two_out", Source("script", 17)), "onnx")
    data = RoleData(ZOO["two_in_two_out"].inputs(16))
    owner = open_evaluator(network, {"calibration": data, "evaluation": data, "holdout": data}, DEVICE)
    graph = onnx.load_from_string(written(owner.compress(assignment(owner.graph, "names", "random")))).graph
    assert [item.name for item in graph.input] == ["in0", "in1"] == [port.label for port in owner.graph.inputs]
    assert len(graph.output) == 2

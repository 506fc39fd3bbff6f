"""Trained networks read back: both modes of `tightfit.load`, the document's numpy reader, damaged files."""

from __future__ import annotations

import functools
from pathlib import Path

import numpy as np
import pytest
import torch

import tightfit
from app.domain.space import Assignment
from tests.worker.export.conftest import host_device
from tests.worker.export.reading import read_by_the_document, with_weights
from tests.worker.export.test_archive import entries
from worker.data import Role, RoleData
from worker.export.agreement import accuracy
from worker.export.checkpoint import dequantized, write_checkpoint
from worker.export.verify import simulate
from worker.quant.network import CompressedNetwork
from worker.search.evaluate import Evaluator, EvaluatorOptions, open_evaluator

NETWORKS = {"lenet5bn_mnist": 0.98, "vgg7_cifar10": 0.7, "resnet8_cifar10": 0.65}
"""The accuracy that each keeps at least, of 2 to 8 bits."""
CALIBRATION, SHOWN = 128, 384


def shown(name: str) -> RoleData:
    from benchmarks.networks import pictures

    return pictures(name)["evaluation"].head(SHOWN)


@functools.cache
def opened(name: str) -> Evaluator:
    from benchmarks.networks import network

    few = shown(name).head(CALIBRATION)
    roles: dict[Role, RoleData] = {"calibration": few, "evaluation": few, "holdout": few}
    return open_evaluator(network(name), roles, host_device(), EvaluatorOptions(calibration=CALIBRATION))


def mixed(owner: Evaluator) -> CompressedNetwork:
    """Everything kept; weights of 8, 6, 5, 4, 3 bits in turn, activations of 8 and 4."""
    graph, bits = owner.graph, (8, 6, 5, 4, 3)
    acts = {
        item.id: {"input": 8, "output": 32}.get(item.role, (8, 4)[i % 2]) for i, item in enumerate(graph.activations)
    }
    kept = {group.id: group.channels for group in graph.groups}
    weights = {layer.name: bits[i % len(bits)] for i, layer in enumerate(graph.layers)}
    return owner.compress(Assignment(kept, weights, acts), "fast")


@pytest.mark.parametrize("name", NETWORKS)
def test_trained_network_when_loaded_then_simulation_float_network_and_numpy_agree(
    name: str, shared_data: Path, tmp_path: Path
) -> None:
    owner, file = opened(name), tmp_path / "net.tightfit"
    net, pictures = mixed(owner), shown(name)
    file.write_bytes(write_checkpoint(net, {"seed": 1}))
    read = read_by_the_document(file)
    for layer in net.layers.values():
        np.testing.assert_array_equal(read.integers[layer.name], layer.weight_int)
        np.testing.assert_array_equal(read.weights[layer.name], dequantized(layer))
    loaded, (wanted,) = tightfit.load(file), simulate(net, pictures.inputs)
    found = torch.cat([loaded(part) for part in pictures.inputs[0].split(128)]).numpy()  # as simulate batches them
    np.testing.assert_array_equal(found, wanted)
    assert pictures.labels is not None
    assert accuracy(found, pictures.labels.numpy()) >= NETWORKS[name]
    plain, floats = with_weights(owner.pruned(net.assignment), read), tightfit.load(file, mode="dequantized")
    with torch.no_grad():
        one, other = floats(*pictures.inputs), plain(*pictures.inputs)
    assert float((one - other).abs().max()) <= 1e-6 * float(other.abs().max())


@pytest.mark.parametrize("name", NETWORKS)
def test_trained_network_when_any_entry_is_damaged_then_refused_by_its_digest(
    name: str, shared_data: Path, tmp_path: Path
) -> None:
    data, file = write_checkpoint(mixed(opened(name)), {"seed": 1}), tmp_path / "net.tightfit"
    for content in entries(data).values():
        altered = bytearray(data)
        altered[data.index(content) + len(content) // 2] ^= 1
        file.write_bytes(altered)
        with pytest.raises(tightfit.CheckpointRefused) as refusal:
            tightfit.load(file)
        assert refusal.value.slug == "digest-mismatch"

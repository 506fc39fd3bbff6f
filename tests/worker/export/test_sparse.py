"""Checkpoints of networks with many zeros among their integers: smaller, and the same network for every reader."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import tightfit
from app.domain.cost import count
from tests.worker.export.reading import read_by_the_document
from worker.export.archive import CheckpointRefused, Tensors, read_archive, write_archive
from worker.export.checkpoint import dequantized, read_checkpoint, write_checkpoint
from worker.export.export import export_all
from worker.export.packing import is_sparser, pack, pack_sparse, packed_bytes, sparse_bytes
from worker.export.recount import needless, recount
from worker.export.report import enriched_manifest
from worker.export.report_view import checks
from worker.export.verify import verify
from worker.quant.network import CompressedNetwork

from .conftest import Lab, host_device

DENSE = ("stem", "fc")
SHARE = 0.8


def thinned(net: CompressedNetwork, share: float, but: tuple[str, ...] = DENSE) -> CompressedNetwork:
    """Return a network the smallest of whose integers are zero, a share of each layer, but of some layers none more."""
    layers = {}
    for name, layer in net.layers.items():
        if name in but or layer.weight_int is None:
            layers[name] = layer
            continue
        ints = layer.weight_int.copy().reshape(-1)
        ints[np.argsort(np.abs(ints), kind="stable")[: int(share * ints.size)]] = 0
        layers[name] = replace(layer, weight_int=ints.reshape(layer.weight_int.shape))
    module = copy.deepcopy(net.module)
    for name, layer in layers.items():
        leaf: Any = module.get_submodule(name)
        leaf.weight.data = torch.from_numpy(dequantized(layer))
        if leaf.weight.dim() == 4:
            leaf.weight.data = leaf.weight.data.contiguous(memory_format=torch.channels_last)
    return replace(net, module=module, layers=layers)


@pytest.fixture(scope="module")
def sparse(mixed: CompressedNetwork) -> CompressedNetwork:
    return thinned(mixed, SHARE)


def test_checkpoint_when_many_integers_are_zero_then_those_layers_are_sparse_and_the_file_that_much_smaller(
    mixed: CompressedNetwork, sparse: CompressedNetwork
) -> None:
    data, whole = write_checkpoint(sparse, {}), write_checkpoint(mixed, {})
    tensors, _, _ = read_archive(data)
    saved = 0
    for name, layer in sparse.layers.items():
        assert layer.weight_int is not None
        size, nonzero = layer.weight_int.size, int((layer.weight_int != 0).sum())
        plain, short = packed_bytes(size, layer.bits), sparse_bytes(size, nonzero, layer.bits)
        forms = [end for end in ("packed", "sparse") if f"{name}.weight.{end}" in tensors]
        assert forms == (["sparse"] if short < plain else ["packed"])
        assert (forms == ["sparse"]) is (name not in DENSE), name
        assert tensors[f"{name}.weight.{forms[0]}"].nbytes == min(plain, short)
        saved += plain - min(plain, short)
    assert saved > 3000
    assert 0 <= len(whole) - len(data) - saved < 64  # offsets of fewer digits and a header padded to eight bytes


def test_checkpoint_when_sparse_then_the_same_network_and_the_same_bytes_again(
    sparse: CompressedNetwork, lab: Lab, tmp_path: Path
) -> None:
    data = write_checkpoint(sparse, {"seed": 7})
    again, manifest = read_checkpoint(data)
    assert write_checkpoint(again, manifest) == data == write_checkpoint(sparse, {"seed": 7})
    for name, layer in sparse.layers.items():
        np.testing.assert_array_equal(again.layers[name].weight_int, layer.weight_int)
    inputs = lab.data["evaluation"].inputs
    (tmp_path / "net.tightfit").write_bytes(data)
    module = tightfit.load(tmp_path / "net.tightfit")
    assert torch.equal(module(*inputs), sparse.forward(*inputs))


def test_document_when_layers_are_sparse_then_its_program_reads_the_same_integers_and_weights(
    sparse: CompressedNetwork, tmp_path: Path
) -> None:
    (tmp_path / "net.tightfit").write_bytes(write_checkpoint(sparse, {}))
    read = read_by_the_document(tmp_path / "net.tightfit")
    for name, layer in sparse.layers.items():
        np.testing.assert_array_equal(read.integers[name], layer.weight_int)
        np.testing.assert_array_equal(read.weights[name], dequantized(layer))


def test_recount_when_layers_are_sparse_then_a_devices_bytes_stay_and_the_files_are_counted_beside(
    sparse: CompressedNetwork, mixed: CompressedNetwork, lab: Lab
) -> None:
    device = host_device()
    found, plain = (recount(write_checkpoint(net, {}), device) for net in (sparse, mixed))
    assert found.totals() == plain.totals()
    assert found.totals()["weight_bytes"] == count(lab.graph, sparse.assignment, device).weight_bytes
    for layer, other in zip(found.layers, plain.layers, strict=True):
        own = sparse.layers[layer.name]
        assert own.weight_int is not None and own.weight_scale is not None
        rest = 4 * (own.bias.size + own.weight_scale.size)
        assert layer.zeros == int((own.weight_int == 0).sum())
        if layer.name in DENSE:
            assert (layer.form, layer.stored_bytes) == ("packed", layer.weight_bytes)
        else:
            assert layer.form == "sparse" and layer.zeros >= int(SHARE * own.weight_int.size)
            stored = sparse_bytes(own.weight_int.size, own.weight_int.size - layer.zeros, own.bits)
            assert layer.stored_bytes == stored + rest < layer.weight_bytes
        assert (other.form, other.stored_bytes) == ("packed", other.weight_bytes)
    assert found.tensor_bytes == sum(layer.stored_bytes for layer in found.layers)


def test_needless_when_the_network_has_more_zeros_than_the_file_then_the_layer_is_named(
    sparse: CompressedNetwork, mixed: CompressedNetwork
) -> None:
    found = recount(write_checkpoint(mixed, {}), host_device())
    assert needless(found, mixed) == []
    told = needless(found, thinned(mixed, SHARE, but=tuple(name for name in mixed.layers if name != "block1_conv1")))
    assert len(told) == 1 and told[0].startswith("block1_conv1: ") and "would do" in told[0]


def test_export_when_layers_are_sparse_then_verified_and_the_report_counts_them(
    sparse: CompressedNetwork, lab: Lab, tmp_path: Path
) -> None:
    request = lab.request(sparse)
    report = export_all(request, tmp_path).report
    assert report.failures == []
    forms = [layer["form"] for layer in report.to_json()["layers"]]
    assert sorted(set(forms)) == ["packed", "sparse"]
    manifest = enriched_manifest({}, lab.graph, sparse.assignment, request.device, request.budget)
    document = {"verification": report.to_json(), "manifest": manifest}
    facts = dict(checks(document))
    taken = sum(layer["stored_bytes"] for layer in report.to_json()["layers"])
    assert facts[f"Layers, sparse in the checkpoint: {forms.count('sparse')}"] == f"{taken:,} B for all"
    assert "sparse in the checkpoint" in (tmp_path / "report.html").read_text()


def test_verify_when_a_layer_is_stored_in_the_longer_form_then_failed(sparse: CompressedNetwork, lab: Lab) -> None:
    files = lab.files(sparse)
    tensors, graph, manifest = read_archive(files.checkpoint)
    _lengthened(tensors, sparse)
    report = verify(lab.subject(sparse), replace(files, checkpoint=write_archive(tensors, graph, manifest)))
    assert "checkpoint-error" in {item["code"] for item in report.failures}
    assert any("longer of their two forms" in item["detail"] for item in report.failures)


def _lengthened(tensors: Tensors, net: CompressedNetwork) -> None:
    layer = net.layers["block1_conv1"]
    assert layer.weight_int is not None
    del tensors["block1_conv1.weight.sparse"]
    tensors["block1_conv1.weight.packed"] = pack(layer.weight_int, layer.bits)


def _needlessly_sparse(tensors: Tensors, net: CompressedNetwork) -> None:
    layer = net.layers["fc"]
    assert layer.weight_int is not None and not is_sparser(layer.weight_int, layer.bits)
    del tensors["fc.weight.packed"]
    tensors["fc.weight.sparse"] = pack_sparse(layer.weight_int, layer.bits)


def _both_forms(tensors: Tensors, net: CompressedNetwork) -> None:
    layer = net.layers["block1_conv1"]
    assert layer.weight_int is not None
    tensors["block1_conv1.weight.packed"] = pack(layer.weight_int, layer.bits)


def _cut(tensors: Tensors, net: CompressedNetwork) -> None:
    tensors["block1_conv1.weight.sparse"] = tensors["block1_conv1.weight.sparse"][:-1]


def _one_mark_more(tensors: Tensors, net: CompressedNetwork) -> None:
    stream = tensors["block1_conv1.weight.sparse"].copy()
    stream[np.flatnonzero(stream == 0)[0]] = 1
    tensors["block1_conv1.weight.sparse"] = stream


@pytest.mark.parametrize("change", [_lengthened, _needlessly_sparse, _both_forms, _cut, _one_mark_more])
def test_read_checkpoint_when_a_sparse_layer_does_not_fit_then_refused(
    sparse: CompressedNetwork, change: Callable[[Tensors, CompressedNetwork], None]
) -> None:
    tensors, graph, manifest = read_archive(write_checkpoint(sparse, {}))
    change(tensors, sparse)
    with pytest.raises(CheckpointRefused):
        read_checkpoint(write_archive(tensors, graph, manifest))


@pytest.mark.parametrize("place", [0.1, 0.3, 0.5, 0.7, 0.9])
def test_load_when_a_byte_of_a_sparse_file_is_another_or_the_end_is_missing_then_refused(
    sparse: CompressedNetwork, tmp_path: Path, place: float
) -> None:
    data = bytearray(write_checkpoint(sparse, {}))
    (tmp_path / "short.tightfit").write_bytes(data[: int(place * len(data))])
    data[int(place * len(data))] ^= 1
    (tmp_path / "other.tightfit").write_bytes(data)
    for name in ("short", "other"):
        with pytest.raises(CheckpointRefused):
            tightfit.load(tmp_path / f"{name}.tightfit")

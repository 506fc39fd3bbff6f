"""The checkpoint comes back bit for bit, and unsound ones do not come back at all."""

from __future__ import annotations

import copy
import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import tightfit
from tests.worker.export.reading import read_by_the_document, with_weights
from worker.export.archive import CheckpointRefused, Tensors, read_archive, write_archive
from worker.export.checkpoint import read_checkpoint, write_checkpoint
from worker.quant.network import CompressedNetwork

from .conftest import Lab

Change = Callable[[Tensors, dict[str, Any]], None]


def outputs(net: CompressedNetwork, lab: Lab) -> torch.Tensor:
    return net.forward(*lab.data["evaluation"].inputs)


def test_checkpoint_when_read_back_then_outputs_are_bit_identical(mixed: CompressedNetwork, lab: Lab) -> None:
    net = mixed
    again, manifest = read_checkpoint(write_checkpoint(net, {"seed": 7}))
    assert torch.equal(outputs(again, lab), outputs(net, lab))
    assert manifest == {"seed": 7}
    assert (again.assignment, again.grids, again.kept) == (net.assignment, net.grids, net.kept)
    for name, layer in net.layers.items():
        np.testing.assert_array_equal(again.layers[name].weight_int, layer.weight_int)
        np.testing.assert_array_equal(again.layers[name].weight_scale, layer.weight_scale)


def test_checkpoint_when_float_then_outputs_are_bit_identical(lab: Lab) -> None:
    net = lab.compress(1.0, [32], [32])
    again, _ = read_checkpoint(write_checkpoint(net, {}))
    assert torch.equal(outputs(again, lab), outputs(net, lab))


def test_checkpoint_when_written_twice_or_rewritten_then_bytes_are_equal(mixed: CompressedNetwork) -> None:
    data = write_checkpoint(mixed, {"a": 1})
    assert write_checkpoint(mixed, {"a": 1}) == data
    assert write_checkpoint(*read_checkpoint(data)) == data


def test_checkpoint_when_weights_are_packed_then_tensors_have_their_true_size(mixed: CompressedNetwork) -> None:
    net = mixed
    tensors, _, _ = read_archive(write_checkpoint(net, {}))
    for layer in net.layers.values():
        assert layer.weight_int is not None
        size, nonzero = layer.weight_int.size, int((layer.weight_int != 0).sum())
        packed, sparse = -(-size * layer.bits // 8), -(-size // 8) - (-nonzero * layer.bits // 8)
        form = "sparse" if sparse < packed else "packed"
        assert tensors[f"{layer.name}.weight.{form}"].nbytes == min(packed, sparse)
        assert sum(f"{layer.name}.weight.{name}" in tensors for name in ("packed", "sparse")) == 1


def test_load_when_in_a_process_of_its_own_then_same_outputs_without_the_service(
    mixed: CompressedNetwork, lab: Lab, tmp_path: Path
) -> None:
    (tmp_path / "net.tightfit").write_bytes(write_checkpoint(mixed, {}))
    np.save(tmp_path / "x.npy", lab.data["evaluation"].inputs[0][:64].numpy())
    code = (
        "import sys, json, numpy, torch, tightfit\n"
        "opened = []\n"
        "sys.addaudithook(lambda event, _: opened.append(event) if event.startswith('pickle.') else None)\n"
        f"net = tightfit.load({str(tmp_path / 'net.tightfit')!r})\n"
        f"y = net(torch.from_numpy(numpy.load({str(tmp_path / 'x.npy')!r})))\n"
        "unwanted = [m for m in ('app.store', 'app.actions', 'dbos', 'sqlalchemy', 'fastapi') if m in sys.modules]\n"
        "print(json.dumps([isinstance(net, torch.nn.Module), unwanted, opened, y.tolist()]))"
    )
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    is_module, unwanted, unpickled, rows = json.loads(answer.stdout)
    assert is_module and unwanted == [] and unpickled == []
    np.testing.assert_array_equal(np.float32(rows), outputs(mixed, lab)[:64].numpy())


def test_load_when_dequantized_then_the_float_network_with_the_weights_that_numpy_reads(
    mixed: CompressedNetwork, lab: Lab, tmp_path: Path
) -> None:
    file, inputs = tmp_path / "net.tightfit", lab.data["evaluation"].inputs
    file.write_bytes(write_checkpoint(mixed, {}))
    loaded = tightfit.load(file, mode="dequantized")
    plain = with_weights(lab.evaluator.pruned(mixed.assignment), read_by_the_document(file))
    with torch.no_grad():
        found, wanted, rounded = loaded(*inputs), plain(*inputs), tightfit.load(file)(*inputs)
    assert float((found - wanted).abs().max()) <= 1e-5 * float(wanted.abs().max())
    assert torch.equal(found, replace(mixed, grids={}, layers={}).forward(*inputs))
    assert 1e-3 < float((found - rounded).abs().max()) / float(wanted.abs().max()) < 0.5  # activations were rounded


def test_load_when_dequantized_and_thawed_then_it_trains_and_fake_quantized_has_no_gradients(
    mixed: CompressedNetwork, lab: Lab, tmp_path: Path
) -> None:
    file, x = tmp_path / "net.tightfit", lab.data["evaluation"].inputs[0][:8]
    file.write_bytes(write_checkpoint(mixed, {}))
    module = tightfit.load(file, mode="dequantized")
    assert not module(x).requires_grad
    module.requires_grad_(True)(x).square().sum().backward()
    for item in module.parameters():
        assert item.grad is not None and (item.dim() == 1 or float(item.grad.abs().sum()) > 0)
    assert not tightfit.load(file).requires_grad_(True)(x).requires_grad


def test_load_when_the_mode_is_unknown_then_refused(mixed: CompressedNetwork, tmp_path: Path) -> None:
    (tmp_path / "net.tightfit").write_bytes(write_checkpoint(mixed, {}))
    with pytest.raises(ValueError, match="'int8' is none of"):
        tightfit.load(tmp_path / "net.tightfit", mode="int8")  # type: ignore[arg-type]


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(place=st.floats(0, 1, exclude_max=True), mask=st.integers(1, 255), kept=st.floats(0, 1, exclude_max=True))
def test_load_when_a_byte_is_another_or_the_end_is_missing_then_refused_by_name(
    mixed: CompressedNetwork, tmp_path: Path, place: float, mask: int, kept: float
) -> None:
    data, file = bytearray(write_checkpoint(mixed, {"seed": 7})), tmp_path / "net.tightfit"
    file.write_bytes(data[: int(kept * len(data))])
    with pytest.raises(tightfit.CheckpointRefused) as refusal:
        tightfit.load(file)
    assert refusal.value.slug == "invalid-archive"
    data[int(place * len(data))] ^= mask
    file.write_bytes(data)
    with pytest.raises(tightfit.CheckpointRefused) as refusal:
        tightfit.load(file)
    assert refusal.value.slug in ("digest-mismatch", "invalid-archive", "model-too-large")


def _drop_tensor(tensors: Tensors, graph: dict[str, Any]) -> None:
    del tensors["stem.weight.scale"]


def _extra_tensor(tensors: Tensors, graph: dict[str, Any]) -> None:
    tensors["stray.packed"] = np.zeros(1, np.uint8)


def _short_stream(tensors: Tensors, graph: dict[str, Any]) -> None:
    tensors["stem.weight.packed"] = tensors["stem.weight.packed"][:-1]


def _infinite_scale(tensors: Tensors, graph: dict[str, Any]) -> None:
    tensors["stem.weight.scale"] = tensors["stem.weight.scale"] * np.float32(np.inf)


def _wider_bits(tensors: Tensors, graph: dict[str, Any]) -> None:
    graph["layers"]["stem"]["bits"] = 64


def _zero_scale(tensors: Tensors, graph: dict[str, Any]) -> None:
    graph["grids"]["x"]["scale"] = 0.0


def _unknown_op(tensors: Tensors, graph: dict[str, Any]) -> None:
    graph["nodes"][2]["op"] = "os.system"


def _evil_option(tensors: Tensors, graph: dict[str, Any]) -> None:
    graph["nodes"][2]["options"] = {"a=__import__('os').system('true'),b": 1}


def _evil_name(tensors: Tensors, graph: dict[str, Any]) -> None:
    graph["nodes"][0]["name"] = "x, y=print()"


def _dangling(tensors: Tensors, graph: dict[str, Any]) -> None:
    graph["nodes"][2]["args"] = [{"node": "nowhere"}]


def _other_version(tensors: Tensors, graph: dict[str, Any]) -> None:
    graph["version"] = 99


def _wrong_stride(tensors: Tensors, graph: dict[str, Any]) -> None:
    next(node for node in graph["nodes"] if node["name"] == "block2_conv1")["options"]["stride"] = [1, 1]


def _deep(tensors: Tensors, graph: dict[str, Any]) -> None:
    nested: list[Any] = []
    for _ in range(300):
        nested = [nested]
    graph["nodes"][2]["args"] = nested


@pytest.mark.parametrize(
    "change",
    [
        _drop_tensor,
        _extra_tensor,
        _short_stream,
        _infinite_scale,
        _wider_bits,
        _zero_scale,
        _unknown_op,
        _evil_option,
        _evil_name,
        _dangling,
        _other_version,
        _wrong_stride,
        _deep,
    ],
)
def test_read_checkpoint_when_contents_do_not_fit_then_refused(mixed: CompressedNetwork, change: Change) -> None:
    tensors, graph, manifest = read_archive(write_checkpoint(mixed, {}))
    graph = copy.deepcopy(graph)
    change(tensors, graph)
    with pytest.raises(CheckpointRefused):
        read_checkpoint(write_archive(tensors, graph, manifest))

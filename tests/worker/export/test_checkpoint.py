"""The checkpoint comes back bit for bit, and unsound ones do not come back at all."""

from __future__ import annotations

import copy
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

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
        assert tensors[f"{layer.name}.weight.packed"].nbytes == -(-layer.weight_int.size * layer.bits // 8)


def test_load_when_in_a_process_of_its_own_then_same_outputs_without_the_service(
    mixed: CompressedNetwork, lab: Lab, tmp_path: Path
) -> None:
    (tmp_path / "net.tightfit").write_bytes(write_checkpoint(mixed, {}))
    np.save(tmp_path / "x.npy", lab.data["evaluation"].inputs[0][:64].numpy())
    code = (
        "import sys, json, numpy, torch, tightfit\n"
        f"net = tightfit.load({str(tmp_path / 'net.tightfit')!r})\n"
        f"y = net(torch.from_numpy(numpy.load({str(tmp_path / 'x.npy')!r})))\n"
        "unwanted = [m for m in ('app.store', 'app.actions', 'dbos', 'sqlalchemy', 'fastapi') if m in sys.modules]\n"
        "print(json.dumps([isinstance(net, torch.nn.Module), unwanted, y.tolist()]))"
    )
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    is_module, unwanted, rows = json.loads(answer.stdout)
    assert is_module and unwanted == []
    np.testing.assert_array_equal(np.float32(rows), outputs(mixed, lab)[:64].numpy())


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

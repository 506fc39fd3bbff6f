"""Every kind of layer as QDQ: ONNX Runtime follows the simulation, and a file that says something else is found out."""

from __future__ import annotations

import functools
import io
from collections.abc import Callable

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from torch import Tensor, nn

from app.domain.space import widest
from tests.worker.digit_files import DEVICE
from tests.worker.export.written import written
from worker.data import RoleData
from worker.export.agreement import sqnr_db
from worker.export.audit import differences
from worker.export.checkpoint import read_checkpoint, write_checkpoint
from worker.export.verify import run_onnx, simulate
from worker.quant.network import CompressedNetwork
from worker.search.evaluate import open_evaluator, open_network

MIN_SQNR_DB = 30.0
ROWS = 24


class First(nn.Module):
    """A recurrent layer's sequence alone."""

    def __init__(self, layer: nn.LSTM | nn.GRU) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.layer(x)[0]
        return found


NETS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "Conv1d in groups": (lambda: nn.Conv1d(8, 12, 3, stride=2, groups=4), (8, 20)),
    "Conv3d": (lambda: nn.Conv3d(3, 5, (1, 3, 2), padding=1), (3, 4, 6, 6)),
    "ConvTranspose1d in groups": (lambda: nn.ConvTranspose1d(8, 12, 4, stride=2, padding=1, groups=2), (8, 10)),
    "ConvTranspose2d": (lambda: nn.ConvTranspose2d(6, 4, 3, stride=2, output_padding=1, padding=1), (6, 5, 5)),
    "ConvTranspose2d in groups": (lambda: nn.ConvTranspose2d(6, 9, 3, groups=3), (6, 5, 5)),
    "ConvTranspose3d": (lambda: nn.ConvTranspose3d(4, 3, 2, stride=2), (4, 3, 3, 3)),
    "Linear over tokens": (lambda: nn.Linear(10, 7), (6, 10)),
    "Linear over two axes of tokens": (lambda: nn.Linear(10, 7, bias=False), (3, 4, 10)),
    "LSTM both ways": (lambda: First(nn.LSTM(6, 5, batch_first=True, bidirectional=True)), (7, 6)),
    "LSTM of two layers": (lambda: First(nn.LSTM(6, 5, num_layers=2, batch_first=True)), (7, 6)),
    "GRU both ways": (lambda: First(nn.GRU(6, 5, batch_first=True, bidirectional=True)), (7, 6)),
}


@functools.cache
def compressed(kind: str) -> tuple[CompressedNetwork, tuple[Tensor, ...]]:
    """Return one layer between a float input and a ReLU and another one, everything at 8 bits, and rows to run."""
    make, shape = NETS[kind]
    torch.manual_seed(0)
    rows = torch.randn(ROWS, *shape)
    buffer = io.BytesIO()
    module = nn.Sequential(make(), nn.ReLU()).eval()
    dynamic = {0: torch.export.Dim("batch")}
    torch.export.save(torch.export.export(module, (rows[:2],), dynamic_shapes=(dynamic,)), buffer)
    data = RoleData((rows,))
    owner = open_evaluator(
        open_network(buffer.getvalue(), "pt2"), {"calibration": data, "evaluation": data, "holdout": data}, DEVICE
    )
    return owner.compress(widest(owner.graph, 8)), data.inputs


@pytest.mark.parametrize("kind", NETS)
def test_layer_when_exported_then_onnxruntime_follows_the_simulation(kind: str) -> None:
    network, inputs = compressed(kind)
    model = written(network)
    assert differences(model, network) == []
    (simulated,), (ran,) = simulate(network, inputs), run_onnx(model, inputs)
    assert sqnr_db(simulated, ran) >= MIN_SQNR_DB


@pytest.mark.parametrize("kind", NETS)
def test_layer_when_stored_and_loaded_then_equal_outputs(kind: str) -> None:
    network, inputs = compressed(kind)
    again, _ = read_checkpoint(write_checkpoint(network, {}))
    assert np.array_equal(simulate(network, inputs)[0], simulate(again, inputs)[0])


@pytest.mark.parametrize("kind", NETS)
def test_differences_when_one_stored_weight_is_another_then_the_layer_is_named(kind: str) -> None:
    network, _ = compressed(kind)
    proto = onnx.load_from_string(written(network))
    name = next(iter(network.layers))
    held = next(item for item in proto.graph.initializer if item.name == f"{name}.w")
    codes = numpy_helper.to_array(held).copy()
    codes.reshape(-1)[3] ^= 1
    held.CopyFrom(numpy_helper.from_array(codes, held.name))
    assert differences(proto.SerializeToString(), network) == [f"{name}: weights differ"]

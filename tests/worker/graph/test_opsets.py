"""Operators younger than the lowest opset: written by their parts below theirs, as themselves from it on."""

from __future__ import annotations

from collections import Counter

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from app.domain.opsets import DEFAULT, LOWEST
from tests.worker.graph.nets import exported
from worker.graph.opsets import NEWER
from worker.graph.read import read_network
from worker.graph.write_onnx import write_float


class Young(nn.Module):
    """Every operator that changed on the way to the default opset, but a part of a shape."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, padding=1)
        self.groups, self.layer = nn.GroupNorm(2, 8), nn.LayerNorm(12)
        self.head = nn.Linear(12, 4)
        for norm in (self.groups, self.layer):
            nn.init.uniform_(norm.weight, 0.5, 2.0)
            nn.init.uniform_(norm.bias, -1.0, 1.0)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.groups(F.hardswish(self.conv(x)))
        y = F.gelu(F.mish(y)) + F.gelu(y, approximate="tanh")
        y = torch.cat([y.mean(3), y.amax(3), y.amin(3)], 2)
        return self.head(self.layer(y[:, :, 4:16]).amax(1))


@pytest.fixture(scope="module")
def young() -> nn.Module:
    torch.manual_seed(0)
    return Young().eval()


@pytest.mark.parametrize("opset", range(LOWEST, DEFAULT + 1))
def test_write_float_when_operators_are_younger_than_the_opset_then_by_their_parts_and_equal_to_torch(
    young: nn.Module, opset: int
) -> None:
    data = write_float(read_network(exported(young, shape=(3, 8, 8))), opset)
    model = onnx.load_from_string(data)
    onnx.checker.check_model(model, full_check=True)
    assert [(item.domain, item.version) for item in model.opset_import] == [("", opset)]
    assert model.ir_version == {13: 7, 14: 7, 15: 8, 16: 8, 17: 8, 18: 8, 19: 9, 20: 9, 21: 10}[opset]
    kinds = Counter(node.op_type for node in model.graph.node)
    for kind in ("Gelu", "GroupNormalization", "HardSwish", "LayerNormalization", "Mish"):
        assert kinds[kind] == ((2 if kind == "Gelu" else 1) if opset >= NEWER[kind].since else 0), kind
    reductions = [node for node in model.graph.node if node.op_type.startswith("Reduce")]
    assert len(reductions) >= 4
    assert {len(node.input) for node in reductions} == ({2} if opset >= 18 else {1})
    read = {name for node in model.graph.node for name in node.input}
    assert [item.name for item in model.graph.initializer if item.name not in read] == []
    x = torch.randn(5, 3, 8, 8)
    session = ort.InferenceSession(data, providers=["CPUExecutionProvider"])
    (found,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    with torch.no_grad():
        np.testing.assert_allclose(found, young(x).numpy(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("opset", [14, 15])
def test_write_float_when_a_constant_is_spread_over_the_batch_then_its_size_is_cut_out_of_the_whole_shape(
    opset: int,
) -> None:
    class Token(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv1d(4, 4, 1)
            self.token = nn.Parameter(torch.tensor([[[1.0], [2.0], [3.0], [4.0]]]))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.cat([self.token.expand(x.shape[0], -1, -1), self.conv(x)], 2)

    net = Token().eval()
    data = write_float(read_network(exported(net, shape=(4, 6))), opset)
    shapes = [node for node in onnx.load_from_string(data).graph.node if node.op_type == "Shape"]
    assert [len(node.attribute) for node in shapes] == [2 if opset >= 15 else 0]
    x = torch.randn(3, 4, 6)
    session = ort.InferenceSession(data, providers=["CPUExecutionProvider"])
    (found,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    with torch.no_grad():
        np.testing.assert_allclose(found, net(x).numpy(), rtol=1e-5, atol=1e-6)


def test_write_float_when_read_again_from_the_lowest_opset_then_the_same_network(young: nn.Module) -> None:
    module = read_network(exported(young, shape=(3, 8, 8)))
    again = read_network(write_float(module, LOWEST))
    x = torch.randn(2, 3, 8, 8)
    with torch.no_grad():
        np.testing.assert_allclose(again(x).numpy(), module(x).numpy(), rtol=1e-5, atol=1e-5)

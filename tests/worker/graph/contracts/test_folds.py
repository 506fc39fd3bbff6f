"""What is computed while reading equals what a runtime computes, and never grows beyond its bounds."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from tests.worker.graph.contracts.checks import agrees, close
from tests.worker.graph.contracts.folds import ATEN, ONNX, Constants
from worker.graph.aten_constants import fold
from worker.graph.errors import NetworkRefused
from worker.graph.extents import BATCH
from worker.graph.ops import AtenCall
from worker.graph.read import read_network


@pytest.mark.parametrize("constants", ONNX, ids=lambda item: item.name)
def test_onnx_constants_when_folded_then_equal_onnxruntime_and_nothing_else_is_left(constants: Constants) -> None:
    use = constants.use()
    for opset in use.opsets():
        module = read_network(use.file(opset))
        agrees(module, use)
        calls = [node for node in module.graph.nodes if node.op in ("call_function", "call_module")]
        assert len(calls) <= 3  # the layers and the sum


@pytest.mark.parametrize("target", ATEN)
def test_aten_constants_when_folded_then_equal_torch(target: str) -> None:
    name, overload = target.removeprefix("aten.").split(".")
    for arguments in ATEN[target]:
        called = getattr(getattr(torch.ops.aten, name), overload)
        wanted, found = called(**arguments), fold(AtenCall(target, "c", arguments))
        close(list(found) if isinstance(found, list | tuple) else [found], _list(wanted))


def _list(item: Any) -> list[Tensor]:
    return list(item) if isinstance(item, list | tuple) else [item]


def test_constant_when_made_for_every_batch_then_a_view_of_one_row_through_elementwise_functions() -> None:
    zeros = fold(AtenCall("aten.zeros.default", "c", {"size": [BATCH, 512]}))
    assert isinstance(zeros, Tensor)
    ones = fold(AtenCall("aten.add.Tensor", "d", {"self": zeros, "other": torch.ones(512)}))
    assert isinstance(ones, Tensor)
    assert ones.shape == (BATCH, 512) and ones.untyped_storage().nbytes() == 512 * 4
    assert bool((ones[:3] == 1).all())


@pytest.mark.parametrize(
    ("target", "arguments"),
    [
        ("aten.repeat.default", {"self": torch.ones(1 << 20), "repeats": [1 << 12]}),
        ("aten.outer.default", {"self": torch.ones(1 << 20), "vec2": torch.ones(1 << 20)}),
        ("aten.arange.default", {"end": 1 << 40}),
        ("aten.linspace.default", {"start": 0, "end": 1, "steps": 1 << 40}),
        ("aten.unbind.int", {"self": torch.ones(1 << 20)}),
        ("aten.split.Tensor", {"self": torch.ones(1 << 20), "split_size": 1}),
        ("aten.cumsum.default", {"self": torch.zeros(1, 4).expand(BATCH, 4), "dim": 0}),
    ],
)
def test_constants_when_they_would_not_fit_then_refused(target: str, arguments: dict[str, Any]) -> None:
    with pytest.raises(NetworkRefused) as refusal:
        fold(AtenCall(target, "c", arguments))
    assert refusal.value.slug in ("unsupported-operator", "model-too-large")

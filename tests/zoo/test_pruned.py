"""Every family, pruned: the float files compute what the sliced network does, the encodings fit them."""

from __future__ import annotations

import io

import onnx
import pytest
import torch

from tests.zoo import ZOO
from tests.zoo.running import difference, onnx_outputs, outputs
from tests.zoo.test_compressing import assignment, evaluator
from worker.export.encodings import unsound
from worker.export.pruned import write_pruned
from worker.graph.read import read_network

TOLERANCE = 1e-5


@pytest.mark.parametrize("name", ZOO)
def test_network_when_pruned_and_written_then_three_readers_follow_torch(name: str) -> None:
    owner = evaluator(name)
    chosen = assignment(owner.graph, name, "random")
    pruned = owner.pruned(chosen)
    files = write_pruned(owner.compress(chosen), pruned)
    assert files.pt2 is not None, files.why
    onnx.checker.check_model(onnx.load_from_string(files.onnx), full_check=True)
    for batch in (1, 5):
        inputs = ZOO[name].inputs(batch, seed=9)
        wanted = outputs(pruned, inputs)
        assert difference(onnx_outputs(files.onnx, inputs), wanted) < TOLERANCE
        assert difference(outputs(read_network(files.pt2, "pt2"), inputs), wanted) < TOLERANCE
    loaded = torch.export.load(io.BytesIO(files.pt2)).module()
    assert difference(outputs(loaded, inputs), wanted) < TOLERANCE
    assert unsound(files.encodings, files.onnx, owner.compress(chosen)) == []

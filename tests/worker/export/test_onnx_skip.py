"""The file that leaves out filters that are off: it answers as the one that computes all, and computes fewer."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from numpy.typing import NDArray
from onnx import helper
from torch import Tensor, nn
from torch.nn import functional as F

from app.domain.budget import Budget
from app.domain.opsets import DEFAULT, LOWEST
from app.domain.space import build_space
from tests.worker.export.written import SATURATING
from tests.worker.methods.digit_subject import subject
from tests.worker.methods.test_channel_gating import gated, pictures
from tests.worker.quant.digits import assignment, device, evaluator, exported
from worker.data import RoleData
from worker.export.onnx_qdq import write_qdq
from worker.export.onnx_skip import NothingToSkip, skips, write_skipping
from worker.export.verify import run_onnx
from worker.hardware.measure import fed, open_session
from worker.methods.gated_costs import GatedCosts
from worker.methods.gated_hard import at_most, shifted_by
from worker.methods.gated_network import GatedNetwork
from worker.methods.protocol import Subject
from worker.quant.network import CompressedNetwork
from worker.search.evaluate import open_evaluator, open_network


class Chain(nn.Module):
    """Gates one behind the other, pooling between them, a linear layer over flattened channels at the end."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 12, 3, padding=1)
        self.hidden, self.last = nn.Linear(12 * 16, 20), nn.Linear(20, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(F.relu(self.one(x)), 2)
        x = F.avg_pool2d(F.relu6(self.two(x)), 2)
        return self.last(F.relu(self.hidden(torch.flatten(x, 1))))  # type: ignore[no-any-return]


@functools.cache
def chain() -> tuple[CompressedNetwork, Tensor]:
    """Return the chain with three gates that hang on the input, not trained, and rows."""
    torch.manual_seed(3)
    rows = RoleData((torch.randn(96, 3, 16, 16),))
    opened = open_network(exported(Chain(), (3, 16, 16)), "pt2")
    owner = open_evaluator(opened, {"calibration": rows, "evaluation": rows, "holdout": rows}, device())
    network = owner.compress(assignment(owner.graph, 1.0, 8, 8))
    space = build_space(owner.graph, device())
    item = Subject(network, owner.folded, owner.graph, device(), Budget({}), rows, owner.compressor, space)
    training = GatedNetwork(item, 1)
    for site in training.places:
        nn.init.normal_(training.gate(site).excite.weight, std=3.0)
        nn.init.zeros_(training.gate(site).excite.bias)
    made = training.eval().hard()
    costs = GatedCosts.of(owner.graph, made)
    return at_most(made, owner.graph, rows, 0.6 * costs.dense), rows.inputs[0]


def always() -> CompressedNetwork:
    gates = {site: replace(gate, owner=(-1, -1, *gate.owner[2:-2], 0, 0)) for site, gate in gated().gates.items()}
    return replace(gated(), gates=gates)


CASES = {
    "gated": lambda: (gated(), pictures()),
    "some always on": lambda: (always(), pictures()),
    "one left": lambda: (shifted_by(gated(), -1000.0), pictures()),
    "chain": chain,
    "one of a chain left": lambda: (shifted_by(chain()[0], -1000.0), chain()[1]),
}


# a file for other processors is not run where sums of pairs saturate: which pairs there are depends on who is left out
@pytest.mark.parametrize("saturating", sorted({SATURATING, True}))
@pytest.mark.parametrize("opset", [LOWEST, DEFAULT])
@pytest.mark.parametrize("case", CASES)
def test_skipping_when_run_then_the_masked_file_s_answers_bit_for_bit(case: str, opset: int, saturating: bool) -> None:
    network, rows = CASES[case]()  # type: ignore[no-untyped-call]
    (wanted,) = run_onnx(write_qdq(network, saturating, opset), [rows])
    (found,) = run_onnx(write_skipping(network, saturating, opset), [rows], 1)
    np.testing.assert_array_equal(found, wanted)
    simulated = network.forward(rows).numpy()
    assert np.abs(found - simulated).max() < 1e-3 * np.abs(simulated).max()
    plain = replace(network, gates={}).forward(rows).numpy()
    assert np.abs(found - plain).max() > 0.01 * np.abs(plain).max()


def test_skipping_when_float_then_the_simulation_s_answers() -> None:
    network = replace(evaluator().compress(subject(1.0, 8).network.assignment), grids={}, gates=gated().gates)
    (found,) = run_onnx(write_skipping(network), [pictures()], 1)
    np.testing.assert_allclose(found, network.forward(pictures()).numpy(), rtol=1e-3, atol=1e-3)


def made_of(model: bytes, row: Tensor) -> Mapping[str, NDArray[np.uint8]]:
    """Return what the convolutions of integers in a file make of one row, by the name of their results."""
    proto = onnx.load_from_string(model)
    convolutions = [node for node in proto.graph.node if node.op_type == "QLinearConv"]
    for node in convolutions:
        proto.graph.output.append(helper.make_tensor_value_info(node.output[0], onnx.TensorProto.UINT8, None))
    options = ort.SessionOptions()
    options.log_severity_level = 4
    session = ort.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
    found = session.run(None, fed(session, [row.numpy()]))[1:]
    return {node.output[0]: value for node, value in zip(convolutions, found, strict=True)}


def test_skipping_when_run_then_layers_make_the_filters_that_are_on_alone() -> None:
    network, rows = chain()
    model, counts = write_skipping(network, SATURATING), set()
    for row in rows[:6].split(1):
        masks = network.masks(row)
        made = made_of(model, row)
        wanted = [int(mask.sum()) for site, mask in masks.items()][:2]
        assert [value.shape[1] for value in made.values()] == wanted
        counts.add(tuple(wanted))
    assert len(counts) > 1 and (8, 12) not in counts


def test_skips_when_asked_then_who_makes_filters_and_how_many_columns_their_readers_have() -> None:
    found = [(item.made, dict(item.read)) for item in skips(chain()[0]).values()]
    assert found == [("one", {"two": 1}), ("two", {"hidden": 16}), ("hidden", {"last": 1})]


def test_skipping_when_two_rows_are_given_then_the_runtime_says_that_it_takes_one() -> None:
    with pytest.raises(Exception, match="Got: 2 Expected: 1"):
        run_onnx(write_skipping(gated()), [pictures()[:2]])


def test_skipping_when_there_are_no_gates_then_refused() -> None:
    with pytest.raises(NothingToSkip, match="no gates"):
        write_skipping(replace(gated(), gates={}))


class Bent(nn.Module):
    """Its filters pass a function that makes something of zeros, so that leaving them out would change answers."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.two(torch.sigmoid(F.relu(self.one(x)))).mean((2, 3))  # type: ignore[no-any-return]


def test_skipping_when_something_else_than_plain_layers_reads_the_filters_then_refused() -> None:
    opened = open_network(exported(Bent(), (3, 8, 8)), "pt2")
    rows = RoleData((torch.randn(32, 3, 8, 8),))
    owner = open_evaluator(opened, {"calibration": rows, "evaluation": rows, "holdout": rows}, device())
    network = owner.compress(assignment(owner.graph, 1.0, 8, 8))
    (gate, *_) = chain()[0].gates.values()
    network = replace(network, gates={"relu": replace(gate, reads="x")})
    assert open_session(write_qdq(network)) and skips(network) == {}
    with pytest.raises(NothingToSkip, match="no gated layer"):
        write_skipping(network)


def test_skipping_when_written_twice_then_equal_bytes() -> None:
    assert write_skipping(chain()[0]) == write_skipping(chain()[0])

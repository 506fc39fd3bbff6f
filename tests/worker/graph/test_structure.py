"""Channel groups, slicing and the picture on the shapes of networks that are easy to get wrong."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, fx, nn
from torch.nn import functional as F

from app.domain.cost import peak_activation_bytes
from app.domain.graph import ModelGraph
from app.domain.space import widest
from tests.worker.graph.models import INPUT, outputs, relative
from tests.worker.graph.nets import Pictures, exported, make
from tests.zoo.masking import masked
from worker.graph.groups import ChannelPlan, channel_plan
from worker.graph.ops.norms import BATCHNORMS
from worker.graph.picture import draw
from worker.graph.read import read_network
from worker.graph.rewrite import fold_batchnorm
from worker.graph.slicing import Slicer
from worker.graph.write_onnx import write_float

Read = tuple[fx.GraphModule, ChannelPlan, ModelGraph]


class Gate(nn.Module):
    """Squeeze and excitation: a gate per channel ties its producer to the gated one."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.down, self.up = nn.Conv2d(4, 8, 3, padding=1), nn.Conv2d(8, 3, 1), nn.Conv2d(3, 8, 1)
        self.head = nn.Conv2d(8, 5, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.a(x)
        gate = torch.sigmoid(self.up(F.silu(self.down(x.mean((2, 3), keepdim=True)))))
        return self.head(x * gate)


class Dense(nn.Module):
    """Pre-activation blocks: BatchNorm in front of convolutions, outputs chained."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm1, self.a = nn.Conv2d(4, 6, 3, padding=1), nn.BatchNorm2d(6), nn.Conv2d(6, 4, 3, padding=1)
        self.norm2, self.head = nn.BatchNorm2d(10), nn.Linear(10, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = torch.cat([x, self.a(F.relu(self.norm1(x)))], 1)
        return self.head(F.relu(self.norm2(x)).mean((2, 3)))


class Multiplier(nn.Module):
    """A depthwise convolution with two outputs per channel."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.wide, self.b = nn.Conv2d(4, 6, 1), nn.Conv2d(6, 12, 3, groups=6), nn.Conv2d(12, 8, 1)
        self.head = nn.Conv2d(8, 5, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.relu(self.b(F.relu(self.wide(self.a(x))))))


class AcrossChannels(nn.Module):
    """A mean over channels that leaves as many rows as there were channels."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.head = nn.Conv2d(4, 8, 3, padding=1), nn.Conv1d(8, 5, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.a(x).mean(1))


class Tokens(nn.Module):
    """A linear layer over the last of four dimensions."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.head = nn.Conv2d(4, 6, 1), nn.Conv2d(6, 8, 1), nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.b(F.relu(self.a(x))).permute(0, 2, 3, 1))


class Twice(nn.Module):
    """One layer called twice: its output feeds itself."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.head = nn.Conv2d(4, 6, 1), nn.Conv2d(6, 6, 3, padding=1), nn.Conv2d(6, 5, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.b(F.relu(self.b(self.a(x)))))


class FlatSkip(nn.Module):
    """Two branches added after flatten, chained with themselves."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.head = nn.Conv2d(4, 3, 1), nn.Conv2d(4, 3, 1), nn.Linear(2 * 3 * 16, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(x, 2)
        flat = torch.flatten(F.relu(self.a(x)), 1) + torch.flatten(self.b(x), 1)
        return self.head(torch.cat([flat, torch.sigmoid(flat)], 1))


NETS: dict[str, type[nn.Module]] = {
    net.__name__: net for net in (Gate, Dense, Multiplier, AcrossChannels, Tokens, Twice, FlatSkip)
}


def read(net: nn.Module, shape: tuple[int, ...] = INPUT) -> Read:
    module = fold_batchnorm(read_network(exported(net.eval(), shape=shape)))
    plan = channel_plan(module)
    return module, plan, draw(module, plan)


@pytest.fixture(scope="module")
def networks() -> dict[str, Read]:
    torch.manual_seed(0)
    made = {name: net() for name, net in NETS.items()}
    for norm in (made["Dense"].norm1, made["Dense"].norm2):
        nn.init.normal_(norm.bias, 0.0, 0.3)  # type: ignore[arg-type,union-attr]
        nn.init.uniform_(norm.running_var, 0.5, 1.5)  # type: ignore[arg-type,union-attr]
    return {name: read(net) for name, net in made.items()}


@pytest.mark.parametrize("name", NETS)
@settings(max_examples=6, deadline=None)
@given(data=st.data())
def test_network_when_sliced_then_equals_the_masked_one_in_torch_and_onnxruntime(
    name: str, networks: dict[str, Read], data: st.DataObject
) -> None:
    module, plan, graph = networks[name]
    kept = {
        group.id: sorted(data.draw(st.sets(st.integers(0, group.channels - 1), min_size=1))) for group in graph.prunable
    }
    sliced = Slicer(module, plan).sliced(kept)
    x = torch.randn(3, *INPUT, generator=torch.Generator().manual_seed(0))
    wanted = masked(module, plan, kept, Pictures(INPUT))(x)  # type: ignore[arg-type]
    assert relative(sliced(x), wanted) < 1e-5
    assert relative(outputs(write_float(sliced), x), wanted) < 1e-5
    keep = {group.id: len(kept.get(group.id, range(group.channels))) for group in graph.groups}
    for layer in graph.layers:
        weight = sliced.get_submodule(layer.name).weight
        assert isinstance(weight, Tensor)
        assert weight.shape[:2] == (layer.out_width.kept(keep), layer.columns(layer.in_width.kept(keep)))


PRUNABLE = {
    "Gate": {("a", "up"): 8, ("down",): 3},
    "Dense": {("stem",): 6, ("a",): 4},
    "Multiplier": {("a", "wide"): 6, ("b",): 8},
    "AcrossChannels": {},
    "Tokens": {("a",): 6, ("b",): 8},
    "FlatSkip": {("a", "b"): 3},
}


@pytest.mark.parametrize("name", PRUNABLE)
def test_groups_when_found_then_exactly_the_followed_channels_are_prunable(
    name: str, networks: dict[str, Read]
) -> None:
    _, _, graph = networks[name]
    assert {group.producers: group.channels for group in graph.prunable} == PRUNABLE[name]


def test_groups_when_frozen_then_each_says_why(networks: dict[str, Read]) -> None:
    reasons = {name: {g.id: g.frozen for g in graph.groups if g.frozen} for name, (_, _, graph) in networks.items()}
    assert reasons["AcrossChannels"]["a"] == "mean reduces over channels"
    assert reasons["Tokens"]["head"] == "network output"
    assert {found["x"] for found in reasons.values()} == {"network input"}


def test_slicer_when_slicing_then_the_float_network_stays_as_it_was(networks: dict[str, Read]) -> None:
    module, plan, graph = networks["Dense"]
    before = {name: value.clone() for name, value in module.state_dict().items()}
    slicer = Slicer(module, plan)
    for count in (1, 2, 3):
        slicer.sliced({group.id: list(range(count)) for group in graph.prunable})
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())
    rows, columns = slicer.columns("head", {"stem": [0, 5], "a": [3]})
    assert rows.tolist() == [0, 1, 2, 3, 4]
    assert columns.tolist() == [0, 5, 9]


def test_picture_when_a_skip_stays_alive_then_it_counts_to_the_peak() -> None:
    _, _, graph = read(make("residual"), (3, 12, 12))
    spans = {item.id: (item.first_step, item.last_step) for item in graph.activations}
    assert spans["relu"][1] >= spans["relu_1"][1]
    sizes = {
        item.id: item.width.kept({g.id: g.channels for g in graph.groups}) * item.positions
        for item in graph.activations
    }
    assert (sizes["relu"], sizes["relu_1"], sizes["b_0"]) == (8 * 144, 6 * 144, 8 * 144)
    # at the add: the skip, its other operand and the sum are alive
    assert peak_activation_bytes(graph, widest(graph, 8)) == sizes["relu"] + sizes["b_0"] + sizes["relu_2"]


def test_folding_when_done_then_outputs_stay_and_the_statistics_are_kept() -> None:
    net = make("residual")
    module = read_network(exported(net))
    folded = fold_batchnorm(module)
    x = torch.randn(5, 3, 12, 12)
    assert relative(folded(x), net(x)) < 1e-5
    assert not [leaf for leaf in folded.children() if isinstance(leaf, BATCHNORMS)]
    norm = net.get_submodule("stem.1")
    stem = folded.get_submodule("stem_0")
    assert torch.equal(stem.bn_gamma, norm.weight) and torch.equal(stem.bn_beta, norm.bias)  # type: ignore[arg-type]
    assert [type(leaf) for leaf in module.children()].count(nn.BatchNorm2d) == 5


def test_writing_when_repeated_then_the_bytes_are_equal(networks: dict[str, Read]) -> None:
    files = {np.frombuffer(write_float(networks["Gate"][0]), np.uint8).tobytes() for _ in range(3)}
    assert len(files) == 1

"""Compression: what repairs win back, and the identities they rest on."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from app.domain.space import Assignment, widest
from tests.worker.quant.digits import assignment, data, evaluator, random_evaluator, trained
from worker.graph.build import Builder
from worker.quant.compressor import REPAIRS, Repair
from worker.quant.network import CompressedNetwork
from worker.quant.reference import FloatReference, fitting
from worker.quant.walk import run

SITUATIONS = [(0.5, 32, 32), (1.0, 4, 4), (0.75, 3, 4), (1.0, 2, 8)]


def kl(a: Assignment, repair: Repair) -> float:
    return evaluator().evaluate(a, "full", repair).metrics["kl"]


@pytest.mark.parametrize(("keep", "weight_bits", "activation_bits"), SITUATIONS)
def test_compress_when_repaired_then_nearer_to_the_float_network(
    keep: float, weight_bits: int, activation_bits: int
) -> None:
    a = assignment(trained().graph, keep, weight_bits, activation_bits)
    sequential, fast, none = kl(a, "sequential"), kl(a, "fast"), kl(a, "none")
    assert sequential < 0.7 * none
    assert fast < 0.8 * none


def test_compress_when_half_the_channels_go_then_most_of_the_accuracy_stays() -> None:
    a = assignment(trained().graph, 0.5, 32, 32)
    repaired, bare = (evaluator().evaluate(a, "full", repair).metrics["accuracy"] for repair in ("sequential", "none"))
    assert repaired > 0.78
    assert repaired > bare + 0.1


def test_compress_when_everything_is_left_float_then_the_float_network_comes_back() -> None:
    for repair in ("sequential", "fast", "none"):
        network = evaluator().compress(widest(trained().graph, 32), repair)  # type: ignore[arg-type]
        x = data()["evaluation"].inputs[0][:100]
        assert not network.grids
        assert torch.allclose(network.forward(x), run(trained().folded, x), atol=2e-2)


@pytest.mark.parametrize("repair", ["sequential", "fast", "none"])
def test_compress_when_everything_has_16_bits_then_nearer_than_8_bits_and_no_bias_overflows(repair: Repair) -> None:
    graph = trained().graph
    wide, narrow = (kl(assignment(graph, 1.0, bits, bits), repair) for bits in (16, 8))
    assert wide <= narrow
    assert wide < 1e-4


def test_compress_when_repeated_then_bit_identical() -> None:
    a = assignment(trained().graph, 0.75, 4, 4)
    for repair in REPAIRS:
        one, two = (evaluator().compressor.compress(a, repair) for _ in range(2))
        for name, layer in one.layers.items():
            assert np.array_equal(layer.weight_int, two.layers[name].weight_int)  # type: ignore[arg-type]
            assert np.array_equal(layer.bias, two.layers[name].bias)


def test_compress_when_other_assignments_came_between_then_unchanged_and_the_float_network_too() -> None:
    a = assignment(trained().graph, 0.5, 4, 4)
    before = evaluator().compressor.compress(a)
    x = data()["evaluation"].inputs[0][:32]
    float_outputs = run(trained().folded, x)
    evaluator().compressor.compress(assignment(trained().graph, 0.25, 2, 2))
    after = evaluator().compressor.compress(a)
    assert all(np.array_equal(before.layers[n].bias, after.layers[n].bias) for n in before.layers)
    assert torch.equal(run(trained().folded, x), float_outputs)


def layer_outputs(network: CompressedNetwork, pictures: torch.Tensor) -> dict[str, torch.Tensor]:
    found: dict[str, torch.Tensor] = {}

    def after(name: str, value: torch.Tensor) -> torch.Tensor:
        if name in network.layers:
            found[name] = value.clone()
        grid = network.grids.get(name)
        return value if grid is None else grid.fake_quantize_(value)

    run(network.module, pictures, after=after)
    return found


@pytest.mark.parametrize("bits", [32, 4])
def test_compress_when_sequential_then_means_and_deviations_match_the_float_network(bits: int) -> None:
    """BatchNorm re-estimation, for folded networks: every output channel keeps its first two moments."""
    network = evaluator().compress(assignment(trained().graph, 1.0, bits, bits), "sequential")
    reference = evaluator().compressor.reference
    found = layer_outputs(network, reference.inputs[0])
    for name, ref in reference.layers.items():
        if network.module.get_submodule(name).weight.dim() == 4 and found[name][0, 0].numel() > len(ref.positions):
            continue  # moments are matched on the sampled positions, not on all
        rows = found[name].movedim(1, -1).reshape(-1, found[name].shape[1])
        spread = ref.outputs.std(0)
        assert ((rows.mean(0) - ref.outputs.mean(0)).abs() < 0.02 * spread + 1e-2).all()
        assert ((rows.std(0) / spread - 1).abs() < 0.02).all()


class One(nn.Module):
    """A single linear layer: its expected output error can be written down."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(20, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(torch.flatten(x, 1))  # type: ignore[no-any-return]


def test_compress_when_only_means_are_matched_then_the_bias_loses_the_expected_error() -> None:
    """Nagel et al. 2019, section 4.2: b' = b - (W' - W) E[x], with one scale per tensor and a float input."""
    owner = random_evaluator(One(), (20,))
    owner.compressor.device = dataclasses.replace(owner.compressor.device, per_channel_weights=())
    a = widest(owner.graph, 32)
    network = owner.compressor.compress(dataclasses.replace(a, weight_bits={"head": 3}))
    leaf, ref = owner.folded.get_submodule("head"), owner.pictures("full").inputs[0]
    error = network.module.get_submodule("head").weight - leaf.weight
    assert float(error.abs().max()) > 0.01
    wanted = leaf.bias - error @ ref.mean(0)
    assert torch.allclose(network.module.get_submodule("head").bias, wanted, atol=1e-5)


def test_compress_when_the_device_has_one_scale_per_tensor_then_so_does_every_layer() -> None:
    network = evaluator(()).compress(assignment(trained().graph, 0.75, 4, 4))
    for layer in network.layers.values():
        assert layer.weight_scale is not None and len(set(layer.weight_scale.tolist())) == 1


def test_compress_when_channels_are_kept_then_the_report_names_as_many_as_assigned() -> None:
    a = assignment(trained().graph, 0.5, 4, 4)
    network = evaluator().compress(a)
    assert {group: len(kept) for group, kept in network.kept.items()} == dict(a.keep)


class Grouped(nn.Module):
    def __init__(self, middle: int, groups: int) -> None:
        super().__init__()
        self.one, self.two = nn.Conv2d(2, 8, 3, padding=1), nn.Conv2d(8, middle, 3, padding=1, groups=groups)
        self.head = nn.Linear(middle, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(F.relu(self.two(F.relu(self.one(x)))).mean((2, 3)))  # type: ignore[no-any-return]


class Sound(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one, self.two, self.head = nn.Conv1d(2, 8, 5, padding=2), nn.Conv1d(8, 8, 3, groups=8), nn.Linear(112, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(torch.flatten(F.relu(self.two(F.relu(self.one(x)))), 1))  # type: ignore[no-any-return]


class Volume(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one, self.two, self.head = nn.Conv3d(1, 6, 3, padding=1), nn.Conv3d(6, 6, 2), nn.Linear(6, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(F.relu(self.two(F.relu(self.one(x)))).mean((2, 3, 4)))  # type: ignore[no-any-return]


class Tokens(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(6, 12), nn.Linear(12, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.two(F.gelu(self.one(x))).mean(1)  # type: ignore[no-any-return]


class Branches(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Conv2d(2, 8, 3, padding=1), nn.Conv2d(2, 8, 1)
        self.three, self.head = nn.Conv2d(16, 6, 3, 2, 2, 2), nn.Linear(6, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.cat([F.relu(self.one(x)), F.hardswish(self.two(x))], 1)
        return self.head(F.silu(self.three(x)).mean((2, 3)))  # type: ignore[no-any-return]


NETS: dict[str, tuple[nn.Module, tuple[int, ...]]] = {
    "grouped": (Grouped(8, 4), (2, 6, 6)),
    "grouped and widening": (Grouped(12, 4), (2, 6, 6)),
    "depthwise": (Grouped(8, 8), (2, 6, 6)),
    "depthwise and widening": (Grouped(16, 8), (2, 6, 6)),
    "one axis": (Sound(), (2, 16)),
    "three axes": (Volume(), (1, 4, 4, 4)),
    "tokens": (Tokens(), (7, 6)),
    "branches": (Branches(), (2, 8, 8)),
}


@pytest.mark.parametrize("name", NETS)
def test_compress_when_the_network_is_of_another_kind_then_repair_still_pays(name: str) -> None:
    net, shape = NETS[name]
    torch.manual_seed(0)
    for parameter in net.parameters():
        nn.init.normal_(parameter, std=0.4)
    owner = random_evaluator(net, shape)
    a = assignment(owner.graph, 0.5, 4, 8)
    errors = {
        r: float((owner.outputs(owner.compress(a, r), "full")[0] - owner.float_outputs("full")[0]).square().mean())
        for r in ("sequential", "fast", "none")
    }  # type: ignore[arg-type]
    assert errors["sequential"] < errors["none"]
    assert errors["fast"] < errors["none"]


def test_fitting_when_pictures_are_large_then_fewer_are_used() -> None:
    assert fitting(trained().folded, 300) == 300
    builder = Builder()
    large = builder.call(torch.relu, builder.input("x", (64, 256, 256)), name="relu")
    builder.output(large)
    largest = 64 * 256 * 256 * 4
    assert fitting(builder.finish(), 300) == max(16, 256 * 2**20 // largest)


def test_reference_when_built_twice_then_equal() -> None:
    opened, x = trained(), data()["calibration"].inputs[0][:64]
    one, two = (FloatReference(opened.folded, opened.slicer.plan, (x,)) for _ in range(2))
    for name, ref in one.layers.items():
        assert torch.equal(ref.stats.gram, two.layers[name].stats.gram)
        assert torch.equal(ref.positions, two.layers[name].positions)


class NearlyDead(nn.Module):
    """A convolution of which one channel has next to no weights but a bias."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 6, 3, padding=1), nn.Conv2d(6, 5, 1)
        nn.init.normal_(self.a.weight[2], std=1e-13)
        nn.init.constant_(self.a.bias, 0.7)  # type: ignore[arg-type]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.b(F.relu(self.a(x))).mean((2, 3))  # type: ignore[no-any-return]


def test_compress_when_a_channel_is_nearly_dead_then_its_bias_fits_int32_and_others_keep_their_scales() -> None:
    with torch.no_grad():
        owner = random_evaluator(NearlyDead(), (3, 8, 8))
    a = assignment(owner.graph, 1.0, 8, 8)
    network = owner.compress(a, "sequential")
    layer, step = network.layers["a"], network.grids["x"].scale
    assert layer.weight_scale is not None
    codes = np.abs(layer.bias.astype(np.float64) / (layer.weight_scale.astype(np.float64) * step))
    assert codes.max() < 2**31
    assert codes[2] > 2**29  # only just
    assert np.delete(codes, 2).max() < 2**20
    found, wanted = owner.outputs(network, "full"), owner.float_outputs("full")
    assert float((found[0] - wanted[0]).abs().max()) < 0.05 * float(wanted[0].abs().max())

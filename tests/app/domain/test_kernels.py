"""The kernels of an exported network, by hand on small pictures."""

from __future__ import annotations

from dataclasses import replace

import pytest

from app.domain.graph import ModelGraph, Step, Width
from app.domain.kernels import arithmetic, kernels, works_of
from app.domain.latency import Work
from app.domain.space import Assignment, widest
from tests.app.domain.drawings import two_convs


def names(graph: ModelGraph, assignment: Assignment) -> list[str]:
    return [f"{work.op}.{work.precision}" for work in kernels(graph, assignment)]


@pytest.mark.parametrize(
    ("kind", "bits", "found"),
    [
        ("conv", (8, 8, 8), "uint8"),
        ("conv", (7, 8, 8), "int8"),
        ("conv", (8, 7, 8), "int8"),
        ("depthwise", (8, 8, 8), "int8"),
        ("linear", (4, 8, 32), "int8"),
        ("conv", (4, 8, 32), "int16"),
        ("conv", (16, 8, 8), "int16"),
        ("conv", (8, 16, 8), "int16"),
        ("conv", (32, 8, 8), "float"),
        ("conv", (8, 32, 8), "float"),
    ],
)
def test_arithmetic_when_bits_are_chosen_then_the_runtimes(kind: str, bits: tuple[int, int, int], found: str) -> None:
    assert arithmetic(kind, *bits) == found


def test_kernels_when_all_integer_then_quantized_and_turned_once() -> None:
    graph = two_convs()
    assert kernels(graph, widest(graph, 8)) == (
        Work("quantize", "int8", 1, 3, 1, 1024),
        Work("transpose", "int8", 1, 3, 1, 1024),
        Work("conv", "uint8", 3, 16, 9, 1024),
        Work("conv", "uint8", 16, 32, 9, 256),
    )


def test_kernels_when_activations_are_below_8_bits_then_a_clip_behind_each() -> None:
    graph = two_convs()
    assert names(graph, widest(graph, 4)) == [
        "quantize.int8",
        "clip.int8",
        "transpose.int8",
        "conv.int8",
        "clip.int8",
        "conv.int8",
        "clip.int8",
    ]


def test_kernels_when_all_float_then_few_channels_are_read_in_rows_and_blocks_stay() -> None:
    graph = two_convs()
    assert names(graph, widest(graph, 32)) == ["conv.float", "conv.float"]


def test_kernels_when_float_channels_are_odd_then_reordered_between() -> None:
    graph = two_convs()
    odd = replace(widest(graph, 32), keep={"g1": 15, "g2": 32})
    assert kernels(graph, odd) == (
        Work("conv", "float", 3, 15, 9, 1024),
        Work("reorder", "float", 1, 15, 1, 1024),
        Work("conv", "float", 15, 32, 9, 256),
    )


def test_kernels_when_one_layer_stays_float_then_its_boundaries_are_paid() -> None:
    graph = two_convs()
    mixed = replace(widest(graph, 8), weight_bits={"conv1": 4, "conv2": 32})
    assert names(graph, mixed) == [
        "quantize.int8",
        "transpose.int8",
        "conv.int8",
        "transpose.int8",
        "dequantize.int8",
        "kept_float.float",
        "reorder.float",
        "conv.float",
        "reorder.float",
        "quantize.int8",
    ]


@pytest.mark.parametrize(("bits", "kind"), [(8, "max_pool2d"), (6, "max_pool2d_plain")])
def test_kernels_when_a_pool_ends_the_convolutions_then_a_clip_before_it_makes_it_slow(bits: int, kind: str) -> None:
    graph = two_convs()
    pool = Step("pool", "max_pool2d", ("relu2",), "relu2", Width((("g2", 1),)), 64, 4, step=3)
    found = kernels(replace(graph, steps=(pool,)), widest(graph, bits))
    assert found[-1] == Work(kind, "int8", 1, 32, 4, 64)


def test_kernels_when_a_softmax_lies_between_codes_then_it_is_kept_float() -> None:
    graph = two_convs()
    soft = replace(graph, steps=(Step("soft", "softmax", ("relu2",), "relu2", Width((("g2", 1),)), 64, step=3),))
    kept = ["dequantize.int8", "kept_float.float", "softmax.float", "quantize.int8"]
    assert names(soft, widest(graph, 8))[-4:] == kept
    assert names(soft, widest(graph, 32))[-1] == "softmax.float"


@pytest.mark.parametrize(("positions", "precision"), [(1, "int16"), (17, "float")])
def test_kernels_when_a_linear_layer_reads_wide_tokens_then_its_weights_are_floats_at_load(
    positions: int, precision: str
) -> None:
    graph = two_convs()
    layers = tuple(replace(layer, kind="linear", positions=positions) for layer in graph.layers)
    wide = replace(widest(graph, 8), activation_bits=dict.fromkeys(widest(graph, 8).activation_bits, 16))
    found = [work.precision for work in kernels(replace(graph, layers=layers), wide) if work.op == "linear"]
    assert found == [precision, precision]


def test_works_when_of_several_networks_then_counted() -> None:
    graph = two_convs()
    found = works_of([(graph, widest(graph, 8)), (graph, widest(graph, 4))])
    assert found[Work("conv", "uint8", 3, 16, 9, 1024)] == 1
    assert found[Work("quantize", "int8", 1, 3, 1, 1024)] == 2
    assert sum(found.values()) == 4 + 7

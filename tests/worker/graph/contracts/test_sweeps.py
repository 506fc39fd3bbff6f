"""Attributes in all their combinations: equal to ONNX Runtime, also written back, or refused by name."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from onnx import helper
from onnxruntime.capi.onnxruntime_pybind11_state import Fail, InvalidArgument, InvalidGraph, RuntimeException

from tests.worker.graph.contracts.checks import close
from tests.worker.graph.contracts.uses import Session, normal
from tests.worker.graph.models import proto
from worker.graph.errors import NetworkRefused
from worker.graph.read import read_network
from worker.graph.write_onnx import write_float

node = helper.make_node
Sample = tuple[Sequence[onnx.NodeProto], Mapping[str, Any], int, tuple[int, ...]]
"""Nodes from x to z, constants, opset, and the shape of x without the batch."""

NO_RUNTIME = (Fail, InvalidArgument, InvalidGraph, RuntimeException)
SWEEP = settings(max_examples=40, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))


def _ints(*values: int) -> Any:
    return np.array(values, dtype=np.int64)


@st.composite
def windows(draw: st.DrawFn, rank: int, most: int = 3) -> dict[str, Any]:
    """Draw kernel, strides, dilations and pads or auto_pad."""
    sizes = st.integers(1, most)
    found: dict[str, Any] = {"kernel_shape": [draw(sizes) for _ in range(rank)]}
    found["strides"] = [draw(st.integers(1, 3)) for _ in range(rank)]
    mode = draw(st.sampled_from(["NOTSET", "NOTSET", "SAME_UPPER", "SAME_LOWER", "VALID"]))
    if mode != "NOTSET":
        return {**found, "auto_pad": mode}
    begin = [draw(st.integers(0, size - 1)) for size in found["kernel_shape"]]
    end = begin if draw(st.booleans()) else [draw(st.integers(0, size - 1)) for size in found["kernel_shape"]]
    return {**found, "pads": [*begin, *end]}


@st.composite
def convolutions(draw: st.DrawFn) -> Sample:
    rank, groups = draw(st.integers(1, 3)), draw(st.sampled_from([1, 2, 4]))
    how = draw(windows(rank))
    how["dilations"] = [draw(st.integers(1, 2)) for _ in range(rank)]
    held = {"w": normal(groups * draw(st.integers(1, 2)), 4 // groups, *how["kernel_shape"])}
    if draw(st.booleans()):
        held["b"] = normal(len(held["w"]))
    return [node("Conv", ["x", *held], ["z"], group=groups, **how)], held, 17, (4, *_extents(draw, rank))


def _extents(draw: st.DrawFn, rank: int) -> tuple[int, ...]:
    return tuple(draw(st.integers(6, 9)) for _ in range(rank))


@st.composite
def transposed(draw: st.DrawFn) -> Sample:
    rank, groups = draw(st.integers(1, 2)), draw(st.sampled_from([1, 2]))
    how = draw(windows(rank))
    how["dilations"] = [draw(st.integers(1, 2)) for _ in range(rank)]
    how["output_padding"] = [draw(st.integers(0, step - 1)) for step in how["strides"]]
    held = {"w": normal(4, draw(st.integers(1, 3)), *how["kernel_shape"])}
    return [node("ConvTranspose", ["x", *held], ["z"], group=groups, **how)], held, 17, (4, *_extents(draw, rank))


@st.composite
def pools(draw: st.DrawFn) -> Sample:
    rank, op = draw(st.integers(1, 3)), draw(st.sampled_from(["MaxPool", "AveragePool"]))
    how = draw(windows(rank))
    if "auto_pad" not in how:
        how["ceil_mode"] = draw(st.integers(0, 1))
    if op == "AveragePool":
        how["count_include_pad"] = draw(st.integers(0, 1))
    else:
        how["dilations"] = [draw(st.integers(1, 2)) for _ in range(rank)]
    return [node(op, ["x"], ["z"], **how)], {}, 19, (4, *_extents(draw, rank))


@st.composite
def resizes(draw: st.DrawFn) -> Sample:
    rank = draw(st.integers(1, 2))
    mode = draw(st.sampled_from(["nearest", "linear", "cubic"] if rank == 2 else ["nearest", "linear"]))
    places = ["half_pixel", "pytorch_half_pixel", "align_corners", "asymmetric", "half_pixel_symmetric"]
    how: dict[str, Any] = {"mode": mode, "coordinate_transformation_mode": draw(st.sampled_from(places))}
    if mode == "nearest":
        modes = ["round_prefer_floor", "round_prefer_ceil", "floor", "ceil"]
        how["nearest_mode"] = draw(st.sampled_from(modes))
    extents = _extents(draw, rank)
    if draw(st.booleans()):
        sizes = _ints(*(draw(st.integers(1, 14)) for _ in range(rank)))
        axes = list(range(2, rank + 2))
        return [node("Resize", ["x", "", "", "s"], ["z"], axes=axes, **how)], {"s": sizes}, 19, (4, *extents)
    factors = [draw(st.sampled_from([0.5, 0.6, 1.0, 1.3, 1.5, 2.0, 3.0])) for _ in range(rank)]
    held = {"f": np.array([1, 1, *factors], dtype=np.float32)}
    return [node("Resize", ["x", "", "f"], ["z"], **how)], held, 19, (4, *extents)


@st.composite
def pads(draw: st.DrawFn) -> Sample:
    rank, mode = draw(st.integers(1, 2)), draw(st.sampled_from(["constant", "reflect", "edge", "wrap"]))
    least = -2 if mode == "constant" else 0
    sides = [[draw(st.integers(least, 3)) for _ in range(rank)] for _ in range(2)]
    channels = [draw(st.integers(0, 2)) if mode == "constant" else 0 for _ in range(2)]
    sizes = _ints(0, channels[0], *sides[0], 0, channels[1], *sides[1])
    held = {"p": sizes, "v": np.float32(draw(st.sampled_from([0.0, -1.5])))}
    inputs = ["x", "p", "v"] if mode == "constant" else ["x", "p"]
    return [node("Pad", inputs, ["z"], mode=mode)], {k: held[k] for k in inputs[1:]}, 19, (4, *_extents(draw, rank))


@st.composite
def slices(draw: st.DrawFn) -> Sample:
    axes = draw(st.lists(st.sampled_from([1, 2, -1]), min_size=1, max_size=3, unique=True))
    bounds = st.integers(-9, 9)
    steps = [draw(st.sampled_from([1, 1, 2, 3, -1, -2])) for _ in axes]
    held = {"s": _ints(*(draw(bounds) for _ in axes)), "e": _ints(*(draw(bounds) for _ in axes))}
    held |= {"a": _ints(*axes), "t": _ints(*steps)}
    return [node("Slice", ["x", *held], ["z"])], held, 17, (4, 7, 6)


@st.composite
def reshapes(draw: st.DrawFn) -> Sample:
    """Draw factors of 4 * 6 * 5 elements in any order, one of them left open, zeros copied."""
    factors = draw(st.permutations([2, 2, 2, 3, 5]))
    cuts = sorted(draw(st.sets(st.integers(1, 4), max_size=3)))
    parts = [int(np.prod(factors[a:b])) for a, b in zip([0, *cuts], [*cuts, 5], strict=True)]
    sizes = [0, *parts]
    if draw(st.booleans()):
        sizes[draw(st.integers(1, len(parts)))] = -1
    nodes = [node("Reshape", ["x", "s"], ["r"]), node("Relu", ["r"], ["z"])]
    return nodes, {"s": _ints(*sizes)}, 17, (4, 6, 5)


@st.composite
def splits(draw: st.DrawFn) -> Sample:
    axis = draw(st.sampled_from([1, 2, -1]))
    extent = (4, 7, 6)[axis - 1 if axis > 0 else axis]
    cuts = sorted(draw(st.sets(st.integers(1, extent - 1), min_size=1, max_size=3)))
    sizes = np.diff([0, *cuts, extent])
    names = [f"p{index}" for index in range(len(sizes))]
    order = draw(st.permutations(names))
    split = node("Split", ["x", "s"], names, axis=axis)
    return [split, node("Concat", list(order), ["z"], axis=axis)], {"s": _ints(*sizes)}, 17, (4, 7, 6)


@st.composite
def arithmetic(draw: st.DrawFn) -> Sample:
    op = draw(st.sampled_from(["Add", "Sub", "Mul", "Div", "Min", "Max"]))
    sizes = [draw(st.sampled_from([1, extent])) for extent in (4, 7, 6)]
    shape = draw(st.sampled_from([(1, *sizes), tuple(sizes), tuple(sizes[1:]), tuple(sizes[2:]), ()]))
    held = {"c": np.asarray(np.abs(normal(*shape)) + 0.5, dtype=np.float32)}
    return [node(op, draw(st.permutations(["x", "c"])), ["z"])], held, 17, (4, 7, 6)


@st.composite
def reductions(draw: st.DrawFn) -> Sample:
    kinds = ["Mean", "Sum", "Max", "Min", "L1", "L2", "SumSquare", "LogSumExp"]
    op = f"Reduce{draw(st.sampled_from(kinds))}"
    axes = draw(st.lists(st.sampled_from([1, 2, -1]), min_size=1, max_size=3, unique=True))
    keep = draw(st.integers(0, 1))
    if draw(st.booleans()):
        return [node(op, ["x", "a"], ["z"], keepdims=keep)], {"a": _ints(*axes)}, 18, (4, 7, 6)
    form: dict[str, Any] = {"axes": axes} if op != "ReduceSum" else {}
    held = {} if form else {"a": _ints(*axes)}
    return [node(op, ["x", *held], ["z"], keepdims=keep, **form)], held, 13, (4, 7, 6)


EXACT: dict[str, Callable[[], st.SearchStrategy[Sample]]] = {
    "convolution": convolutions,
    "reshape": reshapes,
    "split and concat": splits,
    "arithmetic": arithmetic,
    "reduction": reductions,
    "pad": pads,
}
OR_REFUSED: dict[str, Callable[[], st.SearchStrategy[Sample]]] = {
    "transposed": transposed,  # what would be padded beyond its windows
    "pool": pools,  # one-sided padding that is not counted, with ceil_mode
    "resize": resizes,
    "slice": slices,  # nothing left
}


def _checked(sample: Sample) -> bool:
    """Compare with ONNX Runtime; return False where the reader refuses by name."""
    nodes, held, opset, shape = sample
    data = proto(nodes, held, opset, shape=shape).SerializeToString()
    x = torch.randn(3, *shape, generator=torch.Generator().manual_seed(1))
    try:
        wanted = Session(data).run(x)
    except NO_RUNTIME:
        assume(False)
    assume(wanted[0].numel() > 0)
    try:
        module = read_network(data)
    except NetworkRefused as refusal:
        assert refusal.slug == "unsupported-operator"
        return False
    with torch.no_grad():
        close(module(x), wanted)
    close(Session(write_float(module)).run(x), wanted)
    return True


@pytest.mark.parametrize("family", EXACT)
@SWEEP
@given(data=st.data())
def test_attributes_when_swept_then_equal_onnxruntime(family: str, data: st.DataObject) -> None:
    assert _checked(data.draw(EXACT[family]()))


@pytest.mark.parametrize("family", OR_REFUSED)
@SWEEP
@given(data=st.data())
def test_attributes_when_swept_then_equal_onnxruntime_or_are_refused(family: str, data: st.DataObject) -> None:
    _checked(data.draw(OR_REFUSED[family]()))

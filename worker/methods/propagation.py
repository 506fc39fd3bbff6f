"""Means and variances of every value of a network per channel (dimension 1), without data: from the BatchNorms.

A layer whose BatchNorm is folded in gives N(beta, gamma^2) per channel, whatever it reads. From there moments pass on:
activations, sums, concatenations, average pooling, means over positions, flatten. A sum's variance, and that of a
layer without a BatchNorm, take operands for independent: such variances are `assumed`. Maximum pooling, products of two
values, attention and all else can't be followed: data are needed behind them, and `Propagated.unknown` says why.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from worker.graph.extents import shapes_of
from worker.graph.leaves import ChannelPad, Reshape, Slice, Take
from worker.graph.operands import operands
from worker.graph.ops.norms import BATCHNORMS
from worker.graph.ops.parametric import WEIGHTED
from worker.graph.ops.pooling import AVG_POOLS
from worker.graph.ops.table import module_of
from worker.methods.expectation import response_of, tap_shares
from worker.methods.statistics import Moments, normal, through, through_clip, through_slope

Shapes = Mapping[str, tuple[int, ...]]
ELEMENTWISE = frozenset(
    {torch.sigmoid, torch.tanh, torch.erf, torch.exp, torch.sin, torch.cos, F.silu, F.gelu, F.mish, F.softplus}
    | {F.hardswish, F.hardsigmoid, F.elu, torch.selu, F.softsign, torch.abs}
)
"""Functions whose moments the quadrature gives."""


class Unfollowed(Exception):
    """Moments can't be derived here; the text says why."""


@dataclass(frozen=True)
class Propagated:
    """Moments by node, and for the others why there are none."""

    moments: Mapping[str, Moments]
    unknown: Mapping[str, str]


def propagate(
    module: fx.GraphModule, inputs: Mapping[str, Moments] | None = None, padding_aware: bool = True
) -> Propagated:
    """Follow moments through a BatchNorm-folded canonical graph.

    `inputs` are those of the network's inputs; without them what the inputs alone decide is unknown.
    """
    shapes, moments, unknown = shapes_of(module, 1), dict(inputs or {}), {}
    walk = _Walk(module, shapes, moments, padding_aware)
    for node in module.graph.nodes:
        if node.op not in ("call_module", "call_function"):
            continue
        try:
            moments[node.name] = walk.of(node)
        except Unfollowed as reason:
            unknown[node.name] = str(reason)
    return Propagated(moments, unknown)


@dataclass(frozen=True)
class _Walk:
    """What the rules look at: the graph, shapes for a batch of one, and the moments so far."""

    module: fx.GraphModule
    shapes: Shapes
    moments: Mapping[str, Moments]
    padding_aware: bool

    def of(self, node: fx.Node) -> Moments:
        """Return a node's moments. Raises Unfollowed."""
        if node.op == "call_module":
            leaf = module_of(self.module, node)
            rule = next((rule for kinds, rule in _LEAVES if isinstance(leaf, kinds)), None)
            return _unknown(type(leaf).__name__) if rule is None else rule(self, node, leaf)
        found = _FUNCTIONS.get(node.target)
        return _unknown(getattr(node.target, "__name__", str(node.target))) if found is None else found(self, node)

    def source(self, node: fx.Node, index: int = 0) -> Moments:
        """Return the moments of an operand. Raises Unfollowed where there are none."""
        source = operands(node)[index]
        if source.name not in self.moments:
            raise Unfollowed(f"{source.name} is not known")
        return self.moments[source.name]

    def shape(self, node: fx.Node) -> tuple[int, ...]:
        """Return the shape of what a node reads first."""
        return self.shapes[operands(node)[0].name]

    def constants(self, node: fx.Node) -> list[Tensor | None]:
        """Return for each operand a buffer's numbers, one for all or one per channel of the result, or None."""
        return [self._constant(source, len(self.shapes[node.name])) for source in operands(node)]

    def _constant(self, source: fx.Node, rank: int) -> Tensor | None:
        if source.op != "get_attr":
            return None
        held: Tensor = getattr(self.module, str(source.target)).detach().double()
        sizes = [1] * (rank - held.dim()) + list(held.shape)
        if held.numel() != (sizes[1] if rank > 1 else 1) and held.numel() != 1:
            raise Unfollowed("a constant that is not one per channel: data needed")
        return held.reshape(-1)


def _unknown(what: str) -> Moments:
    raise Unfollowed(f"{what} is not followed: data needed")


def _layer(walk: _Walk, node: fx.Node, leaf: Any) -> Moments:
    over_tokens = isinstance(leaf, nn.Linear) and len(walk.shape(node)) != 2
    if getattr(leaf, "bn_beta", None) is not None:
        return normal(leaf.bn_beta, leaf.bn_gamma)
    if over_tokens:
        raise Unfollowed("a linear layer over tokens: data needed")
    source = walk.source(node)
    return response_of(leaf, source, tap_shares(leaf, walk.shape(node)[2:], walk.padding_aware))


def _batchnorm(walk: _Walk, node: fx.Node, leaf: Any) -> Moments:
    return normal(leaf.bias.detach(), leaf.weight.detach())


def _slope(walk: _Walk, node: fx.Node, leaf: Any) -> Moments:
    return through_slope(walk.source(node), leaf.weight.detach().double())


def _take(walk: _Walk, node: fx.Node, leaf: Any) -> Moments:
    return walk.source(node).picked(leaf.index) if leaf.dim == 1 else walk.source(node)


def _slice(walk: _Walk, node: fx.Node, leaf: Any) -> Moments:
    source = walk.source(node)
    if leaf.dim != 1:
        return source
    return source.picked(torch.arange(len(source.mean))[leaf.start : leaf.stop : leaf.step])


def _channel_pad(walk: _Walk, node: fx.Node, leaf: Any) -> Moments:
    source = walk.source(node)
    sides = [int(leaf.before), int(leaf.behind)]
    mean, variance = F.pad(source.mean, sides, value=float(leaf.value)), F.pad(source.variance, sides)
    return replace(source, mean=mean, variance=variance)


def _reshaped(walk: _Walk, node: fx.Node, leaf: Any = None) -> Moments:
    """Channels stay, or each becomes as many as it has positions, one behind the other."""
    source, before, after = walk.source(node), walk.shape(node), walk.shapes[node.name]
    if len(after) > 1 and before[1] == after[1]:
        return source
    if len(after) == 2 and after[1] == math.prod(before[1:]):
        times = math.prod(before[2:])
        return source.picked(torch.arange(before[1]).repeat_interleave(times))
    raise Unfollowed(f"a reshape from {before} to {after}: data needed")


def _clamp(walk: _Walk, node: fx.Node) -> Moments:
    low, high = node.kwargs.get("min"), node.kwargs.get("max")
    if not all(isinstance(end, int | float | None) for end in (low, high)):
        raise Unfollowed("a clamp between values: data needed")
    ends = (-math.inf if low is None else float(low), math.inf if high is None else float(high))  # type: ignore[arg-type]
    return through_clip(walk.source(node), *ends)


def _elementwise(walk: _Walk, node: fx.Node) -> Moments:
    target: Any = node.target
    return through(walk.source(node), functools.partial(target, **node.kwargs))


def _sum(sign: float, walk: _Walk, node: fx.Node) -> Moments:
    """Means add up; variances too, as if the operands were independent."""
    sources = operands(node)
    if len(sources) != 2 or node.kwargs:
        raise Unfollowed("a sum with a factor: data needed")
    constants = walk.constants(node)
    one, other = (
        walk.source(node, index) if constant is None else _fixed(constant) for index, constant in enumerate(constants)
    )
    found = Moments(
        one.mean + sign * other.mean,
        one.variance + other.variance,
        one.assumed or other.assumed or all(item is None for item in constants),
        one.estimated or other.estimated,
    )
    return _fitting(found, walk.shapes[node.name])


def _fixed(value: Tensor) -> Moments:
    return Moments(value, torch.zeros_like(value))


def _fitting(found: Moments, shape: tuple[int, ...]) -> Moments:
    """Return moments that are one per channel. Raises Unfollowed for others: what is broadcast over positions."""
    if len(shape) < 2 or len(found.mean) != shape[1]:
        raise Unfollowed("values that are not one per channel: data needed")
    return found


def _product(walk: _Walk, node: fx.Node) -> Moments:
    """A product with constants scales; one of two values needs data: a gate and what it gates hang together."""
    sources = operands(node)
    constants = walk.constants(node)
    if len(sources) != 2 or all(item is None for item in constants):
        raise Unfollowed("a product of two values: data needed")
    index = 0 if constants[0] is None else 1
    factor, source = constants[1 - index], walk.source(node, index)
    assert factor is not None
    return _scaled(source, factor, walk.shapes[node.name])


def _quotient(walk: _Walk, node: fx.Node) -> Moments:
    divisor, source = walk.constants(node)[-1], walk.source(node)
    if divisor is None:
        raise Unfollowed("a quotient of two values: data needed")
    return _scaled(source, 1 / divisor, walk.shapes[node.name])


def _scaled(source: Moments, factor: Tensor, shape: tuple[int, ...]) -> Moments:
    found = replace(source, mean=source.mean * factor, variance=source.variance * factor.square())
    return _fitting(found, shape)


def _concat(walk: _Walk, node: fx.Node) -> Moments:
    rank = len(walk.shapes[node.name])
    dim: Any = node.kwargs["dim"]
    if int(dim) % rank != 1:
        raise Unfollowed("a concatenation of positions: data needed")
    parts = [walk.source(node, index) for index in range(len(operands(node)))]
    return Moments(
        torch.cat([part.mean for part in parts]),
        torch.cat([part.variance for part in parts]),
        any(part.assumed for part in parts),
        any(part.estimated for part in parts),
    )


def _averaged(walk: _Walk, node: fx.Node) -> Moments:
    """Windows keep the mean but for what padding adds; the variance falls as if places were independent."""
    source, sizes, target = walk.source(node), walk.shape(node)[2:], node.target
    ones = torch.ones(1, 1, *sizes, dtype=torch.float64)
    share = float(target(ones, **node.kwargs).mean()) if walk.padding_aware else 1.0  # type: ignore[operator]
    kernel: Any = node.kwargs["kernel_size"]
    count = math.prod(kernel) if isinstance(kernel, list | tuple) else int(kernel)
    return Moments(source.mean * share, source.variance / count, True, source.estimated)


def _mean(walk: _Walk, node: fx.Node) -> Moments:
    source, shape = walk.source(node), walk.shape(node)
    dims: Any = node.kwargs["dim"]
    axes = {int(dim) % len(shape) for dim in (dims if isinstance(dims, list | tuple) else [dims])}
    if 1 in axes or not axes <= set(range(2, len(shape))):
        raise Unfollowed("a mean over channels: data needed")
    return Moments(source.mean, source.variance / math.prod(shape[axis] for axis in axes), True, source.estimated)


def _padded(walk: _Walk, node: fx.Node) -> Moments:
    """Constants around positions: a mixture of two values."""
    source, shape, target = walk.source(node), walk.shape(node), node.target
    sides: Any = node.kwargs["pad"]
    if len(sides) > 2 * (len(shape) - 2) or node.kwargs.get("mode", "constant") != "constant":
        raise Unfollowed("a padding of another kind: data needed")
    if not walk.padding_aware:
        return source
    inside = target(torch.ones(1, 1, *shape[2:], dtype=torch.float64), **{**node.kwargs, "value": 0.0})  # type: ignore[operator]
    share, fill = float(inside.mean()), float(node.kwargs.get("value") or 0.0)  # type: ignore[arg-type]
    mean = share * source.mean + (1 - share) * fill
    second = share * (source.variance + source.mean.square()) + (1 - share) * fill * fill
    return replace(source, mean=mean, variance=second - mean.square())


_Leaf = Callable[[_Walk, fx.Node, Any], Moments]
_LEAVES: tuple[tuple[tuple[type[nn.Module], ...], _Leaf], ...] = (
    (WEIGHTED, _layer),
    (BATCHNORMS, _batchnorm),
    ((nn.PReLU,), _slope),
    ((Take,), _take),
    ((Slice,), _slice),
    ((ChannelPad,), _channel_pad),
    ((Reshape,), _reshaped),
)
_FUNCTIONS: Mapping[Any, Callable[[_Walk, fx.Node], Moments]] = {
    torch.relu: lambda walk, node: through_clip(walk.source(node), 0.0),
    torch.clamp: _clamp,
    F.leaky_relu: lambda walk, node: through_slope(walk.source(node), float(node.kwargs["negative_slope"])),  # type: ignore[arg-type]
    **dict.fromkeys(ELEMENTWISE, _elementwise),
    torch.add: functools.partial(_sum, 1.0),
    torch.sub: functools.partial(_sum, -1.0),
    torch.mul: _product,
    torch.div: _quotient,
    torch.cat: _concat,
    **dict.fromkeys(AVG_POOLS, _averaged),
    torch.mean: _mean,
    F.pad: _padded,
    torch.flatten: _reshaped,
    torch.reshape: _reshaped,
}

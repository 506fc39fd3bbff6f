"""How a quantized network is run: its nodes as a list of steps, values between integer kernels as codes."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from worker.graph.leaves import Reshape, Slice
from worker.graph.operands import last_uses, operands
from worker.graph.ops.parametric import CONVOLUTIONS
from worker.graph.ops.table import module_of
from worker.graph.sites import quantizer_sites
from worker.quant.gates import StoredGate, readers
from worker.quant.grids import ActivationGrid
from worker.quant.integer import MAX_BITS, Codes, Kernel, Quantized, encode, integer_kernels
from worker.quant.walk import AfterNode, BeforeLayer, Value, Walk, real

Values = dict[str, Any]
Step = Callable[[Values], Value]
MOVES = frozenset({torch.flatten, torch.reshape, torch.permute, F.pixel_shuffle, F.pixel_unshuffle})
"""Functions that hand values on as they are: of codes they make codes."""


class Simulation:
    """The nodes of a network from the one at `start` up to (without) the one at `stop`, ready to run on many batches.

    Values are rounded to the grid of their site. What an integer kernel may read travels as codes; anything else as
    real numbers. Nothing writes to a value that is kept, so walks may share them.

    `before(node, value)` is called on the first walk ahead of each leaf module with what it reads. It may change the
    module and the layers of the network: how a node is computed is made up only then.

    `gates` by site put zeros behind its quantizer where they are off.
    """

    def __init__(
        self,
        net: Quantized,
        start: int = 0,
        stop: int | None = None,
        before: BeforeLayer | None = None,
        gates: Mapping[str, StoredGate] = {},
    ) -> None:
        nodes = [node for node in net.module.graph.nodes if node.op != "output"]
        self._stop = len(nodes) if stop is None else min(stop, len(nodes))
        self._net, self._before = net, before
        self._gates, self._read = gates, readers(gates)
        self._sites = quantizer_sites(net.module)
        self._heads = {site.id: site.head for site in self._sites.sites}
        self._kernels: dict[str, Kernel] = {}
        given = [node.name for node in nodes if node.op == "placeholder"]
        stretch = nodes[start : self._stop]
        self._inputs = {node.name: given.index(node.name) for node in stretch if node.op == "placeholder"}
        self._coded = _read_as_codes(net.module, nodes)
        gone = last_uses(net.module)
        self._nodes = [(node, tuple(gone.get(node.name, ()))) for node in stretch]
        self._steps: list[Step] = []

    def advance(self, walk: Walk, seen: AfterNode | None = None) -> None:
        """Take a walk over these nodes; `seen(site, value)` is shown what stands behind each quantizer and hands it on.

        Raises ArithmeticError for a value that is no number.
        """
        values = walk.values
        values.update({name: walk.inputs[index] for name, index in self._inputs.items()})
        with torch.no_grad():
            for index, (node, gone) in enumerate(self._nodes):
                if index == len(self._steps):
                    self._steps.append(self._prepared(node, values))
                value = self._steps[index](values)
                if node.name in walk.masks:
                    value = self._gates[node.name].apply(value, walk.masks[node.name])
                if seen is not None and (node.name in self._net.grids or node.name in walk.masks):
                    value = seen(node.name, real(value))
                values[node.name] = value
                for site in self._read.get(node.name, ()):
                    walk.masks[site] = self._gates[site].mask(real(value))
                for item in gone:
                    del values[item]
        walk.step = max(walk.step, self._stop)

    def encoded(self, inputs: Sequence[Tensor]) -> tuple[Value, ...]:
        """Return inputs as the steps ahead of all others make them, to be given to walks in their place."""
        found: list[Value] = list(inputs)
        for name, index in self._inputs.items():
            grid = self._net.grids.get(name)
            if grid is not None and self._is_narrow(name, grid):
                found[index] = encode(inputs[index], grid)
        return tuple(found)

    def _is_narrow(self, name: str, grid: ActivationGrid | None) -> bool:
        return grid is not None and grid.bits <= MAX_BITS and name in self._coded

    def _prepared(self, node: fx.Node, values: Values) -> Step:
        if self._before is not None and node.op == "call_module":
            self._before(node, values[operands(node)[0].name])
        self._kernels |= integer_kernels(self._net, [node], self._sites)
        return self._step(node)

    def _step(self, node: fx.Node) -> Step:
        grid = self._net.grids.get(node.name)
        narrow = self._is_narrow(node.name, grid)
        if node.op == "placeholder":
            return _rounded(lambda values: values[node.name], grid, narrow)
        if node.op == "get_attr":
            constant = getattr(self._net.module, str(node.target))
            return lambda values: constant
        sources = [source.name for source in operands(node)]
        if node.name in self._kernels:
            return self._kernel(node, sources)
        compute = _computed(self._net.module, node)
        if self._settled(node) or (grid is None and _hands_on(self._net.module, node)):
            on_codes = _on_codes(self._net.module, node)
            if on_codes is not None:
                return _either(sources[0], on_codes, _rounded(compute, grid, narrow))
        return _rounded(compute, grid, narrow)

    def _settled(self, node: fx.Node) -> bool:
        """Tell whether a node only clamps what a kernel has put on its grid already."""
        head = self._heads.get(node.name)
        return head in self._kernels and [source.name for source in operands(node)] == [head]

    def _kernel(self, node: fx.Node, sources: list[str]) -> Step:
        kernel: Kernel = self._kernels[node.name]
        grids = [self._net.grids[self._sites.of[source]] for source in sources]

        def step(values: Values) -> Value:
            return kernel([_codes(values[name], grid) for name, grid in zip(sources, grids, strict=True)])

        return step


def _read_as_codes(module: fx.GraphModule, nodes: list[fx.Node]) -> set[str]:
    """Return the nodes whose values kernels may read, at once or behind nodes that hand codes on."""
    found: set[str] = set()
    for node in reversed(nodes):
        layer = node.op == "call_module" and isinstance(module_of(module, node), (*CONVOLUTIONS, nn.Linear))
        if layer or node.target is torch.add or (node.name in found and _hands_on(module, node)):
            found.update(source.name for source in operands(node))
    return found


def _codes(value: Value, grid: ActivationGrid) -> Codes:
    return value if isinstance(value, Codes) else encode(value, grid)


def _on_grid(value: Value, grid: ActivationGrid | None, narrow: bool) -> Value:
    if grid is None or isinstance(value, Codes):
        return value
    return encode(value, grid) if narrow else grid.fake_quantize(value)


def _rounded(compute: Step, grid: ActivationGrid | None, narrow: bool) -> Step:
    return lambda values: _on_grid(compute(values), grid, narrow)


def _computed(module: fx.GraphModule, node: fx.Node) -> Callable[[Values], Tensor]:
    """Return how a node is computed on real numbers."""
    if node.op == "call_module":
        leaf, source = module_of(module, node), operands(node)[0].name
        return lambda values: leaf(real(values[source]))
    target: Any = node.target

    def compute(values: Values) -> Tensor:
        args = fx.node.map_arg(node.args, lambda item: real(values[item.name]))
        return target(*args, **node.kwargs)  # type: ignore[no-any-return]

    return compute


def _either(source: str, on_codes: Callable[[Codes], Codes], otherwise: Step) -> Step:
    """Return a step that computes on codes where it is given codes."""

    def step(values: Values) -> Value:
        value = values[source]
        return on_codes(value) if isinstance(value, Codes) else otherwise(values)

    return step


def _hands_on(module: fx.GraphModule, node: fx.Node) -> bool:
    """Tell whether a node makes codes of codes on the same grid, which it passes on."""
    if node.op == "call_module":
        return isinstance(module_of(module, node), Reshape | Slice)
    return node.op == "call_function" and (node.target in MOVES or node.target in (torch.relu, F.max_pool2d))


def _on_codes(module: fx.GraphModule, node: fx.Node) -> Callable[[Codes], Codes] | None:
    """Return how a node is computed on codes, or None where it isn't."""
    if len(operands(node)) != 1 or not (_hands_on(module, node) or node.target is torch.clamp):
        return None
    if node.op == "call_module":
        leaf = module_of(module, node)
        return lambda codes: Codes(leaf(codes.raw), codes.grid)
    if node.target is torch.relu:
        return lambda codes: _clamped(codes, 0.0, None)
    if node.target is torch.clamp:
        low, high = node.kwargs.get("min"), node.kwargs.get("max")
        if node.args[1:] or not all(isinstance(end, int | float | None) for end in (low, high)):
            return None
        return lambda codes: _clamped(codes, low, high)  # type: ignore[arg-type]
    target: Any = node.target
    rest, options = node.args[1:], node.kwargs
    if node.target is F.max_pool2d:
        return lambda codes: Codes(_largest(codes.raw, rest, options), codes.grid)
    return lambda codes: Codes(target(codes.raw, *rest, **options), codes.grid)


def _clamped(codes: Codes, low: float | None, high: float | None) -> Codes:
    """Clamp codes to those of two real ends: what clamping the real values and rounding them again would give."""
    grid = codes.grid
    ends = [None if end is None else _code_of(end, grid) for end in (low, high)]
    first = None if ends[0] == 0 else ends[0]
    last = None if ends[1] == grid.levels else ends[1]
    if first is None and last is None:
        return codes
    return Codes(codes.raw.clamp(first, last), grid)


@functools.lru_cache(1024)
def _code_of(value: float, grid: ActivationGrid) -> int:
    return int(encode(torch.tensor([value]), grid).raw)


def _largest(raw: Tensor, rest: tuple[Any, ...], options: Mapping[str, Any]) -> Tensor:
    """Pool bytes [n, c, h, w] by maximum; torch's own pooling doesn't take them."""
    kernel, stride = options.get("kernel_size"), options.get("stride")
    if not rest and kernel == stride and isinstance(kernel, tuple) and _is_plain(options):
        return _largest_apart(raw, kernel)
    pooled: Tensor = F.max_pool2d(raw.float(), *rest, **options)
    return pooled.to(torch.int16).to(torch.uint8)


def _is_plain(options: Mapping[str, Any]) -> bool:
    """Tell whether windows are whole: no padding, no gaps, none that reaches over the edge."""
    return (
        options.get("padding", (0, 0)) == (0, 0)
        and options.get("dilation", (1, 1)) == (1, 1)
        and not options.get("ceil_mode", False)
    )


def _largest_apart(raw: Tensor, kernel: tuple[int, ...]) -> Tensor:
    """Pool by windows that touch each other, one axis after the other: the larger of whole slices."""
    for axis, size in zip((2, 3), kernel, strict=True):
        whole = raw.narrow(axis, 0, raw.shape[axis] // size * size)
        parts = [whole[(slice(None),) * axis + (slice(start, None, size),)] for start in range(size)]
        raw = functools.reduce(torch.maximum, parts)
    return raw

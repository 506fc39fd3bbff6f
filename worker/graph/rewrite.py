"""Rewriting a canonical graph: shuffles as selections, BatchNorm folding."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn

from worker.graph.extents import shapes_of
from worker.graph.leaves import Reshape, Take
from worker.graph.ops.norms import BATCHNORMS
from worker.graph.ops.parametric import WEIGHTED, as_stored, rows_first
from worker.graph.ops.table import module_of


def merge_shuffles(module: fx.GraphModule) -> fx.GraphModule:
    """Replace each reshape, permute, reshape that only re-orders channels by the selection of channels it is.

    Through a selection every channel can be removed by itself; a reshape would tie those that share a row of it.
    """
    chains = [chain for node in module.graph.nodes if (chain := _shuffle_chain(module, node))]
    # a sequence may be as long as one batch is large, but not as two are
    shapes = [shapes_of(module, batch) for batch in (2, 3)] if chains else []
    for chain in chains:
        orders = [_channel_order(module, chain, sizes) for sizes in shapes]
        order, node = orders[0], chain[-1]
        if order is not None and orders[1] is not None and torch.equal(order, orders[1]):
            module.add_module(f"{node.name}_order", Take(1, order))
            with module.graph.inserting_before(node):
                taken = module.graph.call_module(f"{node.name}_order", (chain[0].args[0],))
            node.replace_all_uses_with(taken)
    module.graph.eliminate_dead_code(is_impure_node=lambda node: node.op in ("placeholder", "output"))
    module.delete_all_unused_submodules()
    module.recompile()
    return module


def _shuffle_chain(module: fx.GraphModule, last: fx.Node) -> list[fx.Node]:
    """Return reshape, permute and reshape where nothing else reads what lies between them, else nothing."""
    chain = [last]
    for _ in range(2):
        source = chain[0].args[0] if chain[0].args else None
        if not isinstance(source, fx.Node) or len(source.users) != 1:
            return []
        chain.insert(0, source)
    first, middle = chain[0], chain[1]
    reshapes = all(n.op == "call_module" and isinstance(module_of(module, n), Reshape) for n in (first, last))
    return chain if reshapes and middle.target is torch.permute else []


def _channel_order(
    module: fx.GraphModule, chain: Sequence[fx.Node], shapes: Mapping[str, tuple[int, ...]]
) -> Tensor | None:
    """Return which channel each channel behind a chain was in front of it, or None where more than channels move."""
    source, shape = chain[0].args[0], shapes[chain[-1].name]
    if not isinstance(source, fx.Node) or shapes[source.name] != shape or len(shape) < 2:
        return None
    positions = torch.arange(math.prod(shape)).reshape(shape)
    moved = positions
    for node in chain:
        moved = module_of(module, node)(moved) if node.op == "call_module" else node.target(moved, **node.kwargs)  # type: ignore[operator]
    order: Tensor = moved.flatten(2)[0, :, 0] // math.prod(shape[2:]) if len(shape) > 2 else moved[0]
    return order if torch.equal(positions.index_select(1, order), moved) else None


def fold_batchnorm(module: fx.GraphModule) -> fx.GraphModule:
    """Return a copy in which each BatchNorm behind a convolution or linear layer is folded into it.

    W' = W * gamma / sqrt(var + eps), b' = (b - mean) * gamma / sqrt(var + eps) + beta. Every weighted layer has a bias
    afterwards; beta and gamma stay on a folded layer as the attributes `bn_beta` and `bn_gamma` (the analytic bias
    correction of Nagel et al. 2019 reads them).
    """
    folded = copy.deepcopy(module)
    shapes = shapes_of(module)
    for node in list(folded.graph.nodes):
        if node.op != "call_module" or not isinstance(module_of(folded, node), BATCHNORMS):
            continue
        source = node.args[0]
        if (
            source.op == "call_module"
            and len(source.users) == 1
            and _folds(module_of(folded, source), shapes[node.name])
        ):
            _fold(module_of(folded, source), module_of(folded, node))
            node.replace_all_uses_with(source)
            folded.graph.erase_node(node)
            delattr(folded, str(node.target))
    for leaf in folded.children():
        if isinstance(leaf, WEIGHTED) and leaf.bias is None:
            leaf.bias = nn.Parameter(torch.zeros(len(rows_first(leaf))))
    folded.recompile()
    return folded.eval().requires_grad_(False)


def _folds(leaf: nn.Module, shape: tuple[int, ...]) -> bool:
    """Tell whether a BatchNorm scales the outputs of the leaf before it (not behind a linear layer over tokens)."""
    return isinstance(leaf, WEIGHTED) and (not isinstance(leaf, nn.Linear) or len(shape) == 2)


def _fold(layer: Any, norm: Any) -> None:
    factor = norm.weight / torch.sqrt(norm.running_var + norm.eps)
    weight: Tensor = rows_first(layer)
    shift = norm.bias - norm.running_mean * factor
    layer.weight = nn.Parameter(as_stored(layer, weight * factor.reshape(-1, *[1] * (weight.dim() - 1))))
    layer.bias = nn.Parameter(shift if layer.bias is None else layer.bias * factor + shift)
    layer.bn_beta, layer.bn_gamma = norm.bias.detach().clone(), norm.weight.detach().clone()

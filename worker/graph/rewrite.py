"""Rewriting a canonical graph: BatchNorm folding."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, fx, nn

from worker.graph.extents import shapes_of
from worker.graph.ops.norms import BATCHNORMS
from worker.graph.ops.parametric import WEIGHTED, as_stored, rows_first
from worker.graph.ops.table import module_of


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

"""Torch-Pruning's channel groups, brought into the same form as ours: which (layer, side, channel) go together."""

from __future__ import annotations

import logging
import warnings
from collections import defaultdict
from typing import Any, Literal

import torch_pruning as tp
from torch import nn

from tests.zoo import ZOO
from tests.zoo.running import folded
from worker.graph.build import identifier
from worker.graph.ops.parametric import WEIGHTED

Place = tuple[str, Literal["in", "out"], int]
Groups = dict[tuple[str, int], frozenset[Place]]
"""For each output channel of each layer everything that is removed with it."""

DIFFERENCES: dict[str, tuple[frozenset[str], str]] = {
    "resnext": (
        frozenset({f"blocks_{i}_{layer}_0" for i in range(3) for layer in "ab"}),
        "grouped convolutions lose whole groups here; there single channels, which leaves groups of unequal size",
    ),
    "audio_cnn": (
        frozenset({"one_0", "two_0"}),
        "grouped convolutions lose whole groups here; there single channels, which leaves groups of unequal size",
    ),
    "fcn": (
        frozenset({"score2", "up2", "score1"}),
        "grouped transposed convolutions lose whole groups here; there single channels",
    ),
    "group_norm": (
        frozenset({"a"}),
        "GroupNorm's statistics span a group of channels, so here it goes as a whole; there channel by channel, which "
        "changes the statistics of the rest",
    ),
    "shufflenet_v2": (
        frozenset({"blocks_0_left_2", "blocks_0_right_5", "blocks_1_body_5", "blocks_2_body_5"}),
        "shuffles are read as selections of channels here, so that each channel goes by itself; there indices are not "
        "followed through the shuffle's reshape (channel 35 of a layer of 8 is named)",
    ),
    "super_resolution": (
        frozenset({"up", "last"}),
        "pixel shuffle makes one channel of four, which go together here; there they are taken for independent. The "
        "input added at the end ties the last layer to it here; inputs are no part of a group there",
    ),
}
"""By network, the layers whose groups differ, and why ours are right."""


def ours(name: str) -> Groups:
    """Return our groups; a depthwise layer's input is its output."""
    module, plan = folded(name)
    together: dict[int, set[Place]] = defaultdict(set)
    for (node, side), dim in plan.dims.items():
        if side == "out" or (side == "in" and not _is_depthwise(module.get_submodule(node))):
            for column, channel in enumerate(dim.channel.tolist()):
                together[channel].add((node, side, column))
    rows = {key: dim.channel.tolist() for key, dim in plan.dims.items() if key[1] == "out"}
    return {(node, i): frozenset(together[c]) for (node, _), cs in rows.items() for i, c in enumerate(cs)}


def theirs(name: str) -> Groups:
    """Return Torch-Pruning's groups of the source network."""
    entry = ZOO[name]
    net = entry.network().requires_grad_(True)
    inputs: Any = entry.inputs(1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        logging.disable(logging.CRITICAL)
        try:
            graph = tp.DependencyGraph().build_dependency(net, inputs if len(inputs) > 1 else inputs[0])
        finally:  # the process has other tests, some of them of logs
            logging.disable(logging.NOTSET)
    names = {module: identifier(path) for path, module in net.named_modules() if isinstance(module, WEIGHTED)}
    found: Groups = {}
    for module, path in names.items():
        for row in range(_outputs(module)):
            group = graph.get_pruning_group(module, _pruner(module), idxs=[row])
            found[(path, row)] = frozenset(_places(graph, group, names))
    return found


def _places(graph: Any, group: Any, names: dict[nn.Module, str]) -> set[Place]:
    found: set[Place] = set()
    for dependency, columns in group:
        module = dependency.target.module
        if isinstance(module, nn.Module) and module in names:
            side: Literal["in", "out"] = "out" if graph.is_out_channel_pruning_fn(dependency.handler) else "in"
            found |= {(names[module], side, int(column)) for column in columns}
    return found


def _outputs(module: Any) -> int:
    return int(module.out_features if isinstance(module, nn.Linear) else module.out_channels)


def _is_depthwise(module: Any) -> bool:
    return getattr(module, "groups", 1) > 1 and module.groups == module.in_channels == module.out_channels


def _pruner(module: nn.Module) -> Any:
    if isinstance(module, nn.Linear):
        return tp.prune_linear_out_channels
    return tp.prune_depthwise_conv_out_channels if _is_depthwise(module) else tp.prune_conv_out_channels


def differing(name: str) -> frozenset[str]:
    """Return the layers of which at least one channel has another group in Torch-Pruning."""
    mine, other = ours(name), theirs(name)
    return frozenset(layer for layer, row in mine if mine[(layer, row)] != other.get((layer, row)))

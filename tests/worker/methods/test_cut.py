"""Dead channels are cut away: the same answers from fewer channels, constants in the readers' biases."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import nn

from app.domain.budget import Budget
from app.domain.cost import count
from app.domain.space import is_legal
from tests.worker.methods.digit_subject import loss, subject
from tests.worker.quant.digits import device
from worker.export.checkpoint import read_checkpoint, write_checkpoint
from worker.methods.cut import without_dead_channels
from worker.methods.protocol import Subject
from worker.quant.network import CompressedNetwork
from worker.quant.rebias import own_leaves


def emptied(given: Subject, share: float, bias: float) -> CompressedNetwork:
    """Return a network of which a share of each group's channels has no weight left, and one bias."""
    net, slicer = given.network, given.compressor.slicer
    module, layers = own_leaves(net), dict(net.layers)
    plan = slicer.plan
    gone = np.zeros(plan.total + 1, dtype=bool)
    for group in given.graph.prunable:
        ids = np.array(net.kept.get(group.id, range(group.channels)))
        gone[plan.offsets[group.id] + ids[: int(share * len(ids))]] = True
    for name, layer in net.layers.items():
        rows = gone[plan.dims[(name, "out")].channel[slicer.columns(name, net.kept)[0].numpy()]]
        codes, shift = np.array(layer.weight_int), np.array(layer.bias)
        codes[rows], shift[rows] = 0, bias
        leaf: Any = module.get_submodule(name)
        weight = leaf.weight.detach().clone()
        weight[torch.from_numpy(rows)] = 0.0
        leaf.weight, leaf.bias = nn.Parameter(weight, False), nn.Parameter(torch.from_numpy(shift.copy()), False)
        layers[name] = replace(layer, weight_int=codes, bias=shift)
    return replace(net, module=module, layers=layers)


def apart(one: CompressedNetwork, other: CompressedNetwork, given: Subject) -> float:
    pictures = given.rows.inputs[0][:256]
    wanted = one.forward(pictures)
    return float((other.forward(pictures) - wanted).norm() / wanted.norm())


def test_cut_when_dead_channels_are_silent_then_fewer_channels_legal_and_nearly_the_same_answers() -> None:
    given = subject(1.0, 8)
    net = emptied(given, 0.6, -0.3)  # behind ReLU: nothing
    made = without_dead_channels(net, given)
    before, after = (count(given.graph, item.assignment, device()) for item in (net, made))
    assert after.bops < 0.6 * before.bops
    assert after.weight_bytes < 0.7 * before.weight_bytes
    assert is_legal(given.graph, given.space, made.assignment, device())
    assert apart(net, made, given) < 0.02
    stored, _ = read_checkpoint(write_checkpoint(made, {}))
    assert torch.equal(stored.forward(given.rows.inputs[0][:8]), made.forward(given.rows.inputs[0][:8]))


def test_cut_when_dead_channels_are_constants_then_their_readers_take_them_over() -> None:
    given = subject(1.0, 8)
    net = emptied(given, 0.5, 0.25)
    made = without_dead_channels(net, given)
    assert made.assignment != net.assignment
    assert loss(made) < 1.5 * loss(net) + 0.01


def test_cut_when_nothing_is_dead_or_no_fewer_channels_fit_then_the_network_itself() -> None:
    given = subject(1.0, 8)
    assert without_dead_channels(given.network, given) is given.network
    net = emptied(given, 0.5, 0.0)
    assert without_dead_channels(net, replace(given, budget=Budget({"bops": 1.0}))) is net


def test_cut_when_channels_were_removed_before_then_further_ones_go() -> None:
    given = subject(0.5, 8)
    net = emptied(given, 0.5, -0.3)
    made = without_dead_channels(net, given)
    assert sum(made.assignment.keep.values()) < sum(net.assignment.keep.values())
    assert all(set(made.kept[name]) <= set(net.kept.get(name, made.kept[name])) for name in made.kept)
    assert apart(net, made, given) < 0.02

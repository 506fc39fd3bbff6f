"""From a joint network to the hard one: an assignment inside every limit, channels cut away, gates folded in.

Weights stay what they were trained to, multiplied by their rows' gates; each layer gets the steps that round them best.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, fx, nn

from app.domain.cost import count
from app.domain.space import FLOAT_BITS, Assignment
from worker.graph.slicing import Slicer
from worker.methods.djpq import LearnedQuantizer, fold_backward
from worker.methods.hardening import Hardened, best, hardened
from worker.methods.joint_network import JointNetwork
from worker.methods.protocol import NothingLegal, Subject
from worker.methods.straight_rounding import mapped
from worker.methods.trainable import as_stored
from worker.quant.grids import ActivationGrid, GridRules, round_weight, weight_scales
from worker.quant.layer import QuantizedLayer, is_float
from worker.quant.network import CompressedNetwork


def settled(joint: JointNetwork, subject: Subject) -> Hardened:
    """Return the legal assignment nearest to what was learned that keeps every limit, and the channels that stay.

    Where none is found the subject's own assignment takes its place if it keeps them. Raises NothingLegal.
    """
    learned = joint.learned()
    found = hardened(learned, subject.graph, joint.narrowed(), subject.device, subject.budget)
    assignment = subject.network.assignment if found is None else found.assignment
    if not subject.budget.is_met(count(subject.graph, assignment, subject.device)):
        raise NothingLegal("no legal channels and bits inside the budget were found")
    kept = dict(joint.channels)
    for name, margins in learned.margins.items():
        kept[name] = tuple(kept[name][index] for index in best(margins, assignment.keep[name]))
    return Hardened(assignment, kept)


@dataclass(frozen=True, eq=False)
class Start:
    """A network to train on, whether the joint part has trained its weights, and what it is in words."""

    network: CompressedNetwork
    is_trained: bool
    told: str


def starts(joint: JointNetwork, subject: Subject) -> list[Start]:
    """Return networks to train on: what was learned, and beside it the subject's own channels and bits where they keep
    every limit, with the joint network's weights and with its own. Raises NothingLegal."""
    found, own = settled(joint, subject), _own(joint, subject)
    made = [Start(hard_start(joint, found, subject), True, "from what was learned")]
    if own is None:
        return made
    if own != found:
        made.append(Start(hard_start(joint, own, subject), True, "from the candidate's channels and bits"))
    return [*made, Start(subject.network, False, "from the candidate as it was")]


def _own(joint: JointNetwork, subject: Subject) -> Hardened | None:
    """Return the subject's own channels and bits; None where they break a limit or hang on gates by input."""
    network = subject.network
    if network.gates or not subject.budget.is_met(count(subject.graph, network.assignment, subject.device)):
        return None
    whole = {group.id: tuple(range(group.channels)) for group in subject.graph.groups}
    kept = {**whole, **{name: tuple(item) for name, item in network.kept.items()}}
    return Hardened(network.assignment, {name: kept[name] for name in joint.channels})


@torch.no_grad()
def hard_start(joint: JointNetwork, found: Hardened, subject: Subject) -> CompressedNetwork:
    """Return the hard network to train on: sliced, on grids of its bits.

    The weights in its module are those before rounding, for training goes on from them.
    """
    base = subject.compressor.compress(found.assignment, "sequential", found.kept)
    trained = Slicer(_folded(joint, found, subject), subject.compressor.slicer.plan).sliced(found.kept)
    grids = {site: _grid(joint, site, grid) for site, grid in base.grids.items()}
    module, layers = _with(base.module, trained, joint.trained), dict(base.layers)
    for name in joint.trained:
        source = subject.graph.layer[name].input
        leaf: Any = trained.get_submodule(name)
        scale = _scale(joint, leaf, base.layers[name], found, subject)
        layers[name] = _stored(leaf, base.layers[name], scale, grids.get(source))
    return replace(base, module=module, layers=layers, grids=grids)


def _with(module: fx.GraphModule, trained: fx.GraphModule, names: tuple[str, ...]) -> fx.GraphModule:
    """Return a module with some leaves of another one."""
    clone: Any = object.__new__(type(module))
    clone.__dict__.update(module.__dict__)
    clone._modules = {**module._modules, **{name: trained._modules[name] for name in names}}
    return clone  # type: ignore[no-any-return]


def _grid(joint: JointNetwork, site: str, grid: ActivationGrid) -> ActivationGrid:
    """Return a site's grid at the bits of one: the learned range, where there is one."""
    learned = joint.plain_site(site)
    if learned is None:
        return grid
    fixed = copy.deepcopy(learned)
    fixed.restrict(grid.bits)
    found: ActivationGrid = fixed.grid()
    return found


def _folded(joint: JointNetwork, found: Hardened, subject: Subject) -> fx.GraphModule:
    """Return the whole float network with the trained weights in place of its own; of removed channels nothing stays,
    for a bias would go on as a constant."""
    folded = copy.deepcopy(subject.compressor.slicer.module)
    for name in joint.trained:
        leaf: Any = folded.get_submodule(name)
        weight, bias = _weights(joint, name)
        rows, columns = subject.compressor.slicer.columns(name, joint.channels)
        whole, shift = torch.zeros_like(leaf.weight), torch.zeros_like(leaf.bias)
        if weight.shape[1] == whole.shape[1]:
            whole[rows] = weight
        else:
            whole[rows[:, None], columns] = weight
        shift[rows] = bias
        gone = torch.ones(len(whole), dtype=torch.bool)
        gone[subject.compressor.slicer.columns(name, found.kept)[0]] = False
        whole[gone], shift[gone] = 0.0, 0.0
        leaf.weight, leaf.bias = (nn.Parameter(item, requires_grad=False) for item in (whole, shift))
    return folded


def _weights(joint: JointNetwork, name: str) -> tuple[Tensor, Tensor]:
    """Return a layer's master weight and bias as its quantizer maps them, with its rows' gates folded in."""
    weight, bias = joint.weight(name).detach(), joint.bias(name).detach()
    quantizer, factors = joint.plain_quantizer(name), joint.row_factors(name)
    if quantizer is not None:
        weight = mapped(weight, quantizer.curve(), 1.0)
    return (weight, bias) if factors is None else fold_backward(weight, bias, factors)


def _scale(joint: JointNetwork, leaf: Any, like: QuantizedLayer, found: Hardened, subject: Subject) -> Tensor | None:
    """Return the steps of a leaf at the bits of a layer; None where its weights stay float.

    Where the device has a step per row these keep the training's rounding as well as they can; else they round the
    folded weights with the least squared error.
    """
    if is_float(like.bits) or like.weight_scale is None:
        return None
    rules, each = GridRules.of(subject.device), len(like.weight_scale) == len(leaf.weight)
    quantizer = joint.plain_quantizer(like.name)
    if not each or rules.powers or quantizer is None:
        return weight_scales(leaf.weight.detach(), like.bits, each, rules)
    columns = subject.compressor.slicer.columns
    places = torch.searchsorted(columns(like.name, joint.channels)[0], columns(like.name, found.kept)[0])
    steps, factors = _steps(quantizer, joint.weight(like.name).detach(), like.bits), joint.row_factors(like.name)
    folded = steps if factors is None else steps * factors.abs().clamp_min(1e-12)
    return folded[places]


def _steps(quantizer: LearnedQuantizer, weight: Tensor, bits: int) -> Tensor:
    """Return for each row the step at `bits` that comes nearest to what the row was rounded to: the learned one, the
    one that the learned maximum asks for, or the one that fits the weights best [out]."""
    target, fixed, flat = quantizer(weight), copy.deepcopy(quantizer), mapped(weight, quantizer.curve(), 1.0)
    fixed.restrict(bits)
    ways = [quantizer.scale.expand(len(weight)), fixed.scale.expand(len(weight)), weight_scales(flat, bits)]
    errors = []
    for scale in ways:
        made = round_weight(flat, scale, bits) * scale.reshape(-1, *[1] * (flat.dim() - 1))
        errors.append((made - target).flatten(1).square().sum(1))
    return torch.stack(ways).gather(0, torch.stack(errors).argmin(0)[None])[0]


def _stored(leaf: Any, like: QuantizedLayer, scale: Tensor | None, grid: ActivationGrid | None) -> QuantizedLayer:
    """Return a leaf's weights as a layer of the bits of another one, on steps [out] or [1]."""
    weight, bias = leaf.weight.detach(), leaf.bias.detach()
    if scale is None:
        return replace(like, bias=bias.numpy(), weight_float=weight.numpy())
    return as_stored(like, round_weight(weight, scale, like.bits), scale, bias, grid)


def widest_start(subject: Subject) -> Assignment:
    """Return the whole network at its widest legal bits up to 8, or the narrowest above; float where there is no other.

    It is only where training starts: it need not keep any limit.
    """
    space, graph = subject.space, subject.graph
    return Assignment(
        {group.id: max(space.keep[group.id]) for group in graph.groups},
        {name: _wide(widths) for name, widths in space.weight_bits.items()},
        {name: _wide(widths) for name, widths in space.activation_bits.items()},
    )


def _wide(widths: tuple[int, ...]) -> int:
    integers = [bits for bits in widths if bits < FLOAT_BITS]
    return max((bits for bits in integers if bits <= 8), default=min(integers, default=FLOAT_BITS))

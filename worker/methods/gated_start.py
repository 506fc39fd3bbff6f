"""Where gating begins: at the network that pruning would leave, every filter that it takes away switched off.

The compressor narrows the gated groups to the share of the MACs that is asked for, each as far as the answers bear it,
and refits all layers; its weights take their places in the whole network. So training starts from the pruned network's
answers, and a gate that turns on for some inputs adds to them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from worker.methods.gated_costs import GatedCosts
from worker.methods.gated_network import GatedNetwork
from worker.methods.protocol import LossNotFinite, Subject
from worker.methods.untrained import loss_behind
from worker.quant.network import CompressedNetwork

BEGIN = 1.0
"""Where the logit of a gate begins that is on, or with the other sign off: near enough to 0 to change its mind."""
CALM = 0.1
"""What is left of the random weights that gates begin with: at first the input turns no gate, so that training starts
at the pruned network itself, and gates learn what is worth a look."""
ROWS, BATCH = 1024, 256
"""On so many rows, in batches, it is measured what narrowing a group does to the answers."""
LEVELS = (0.25, 0.5, 0.75, 1.0)
STEP = 1 / 32


@torch.no_grad()
def begin(network: GatedNetwork, subject: Subject, share: float) -> None:
    """Set a network's gates, weights and biases to those of the network pruned to a share of the MACs.

    Raises LossNotFinite for rows on which a network's answers are no numbers.
    """
    parts = parts_left(network.costs, filters_of(network), losses_of(network, subject), share)
    chosen = {site: _chosen(network, subject, site, part) for site, part in parts.items()}
    for site, on in chosen.items():
        excite = network.gate(site).excite
        excite.weight *= CALM
        excite.bias.fill_(-BEGIN)
        excite.bias[on] = BEGIN
    _take_over(network, subject, _pruned(network, subject, chosen))


def filters_of(network: GatedNetwork) -> dict[str, tuple[str, int]]:
    """Return by gated site its group and how many filters it has."""
    return {site: (item.group, item.filters) for site, item in network.places.items()}


def losses_of(network: GatedNetwork, subject: Subject) -> dict[str, tuple[float, ...]]:
    """Return by gated site how far answers go from the float network's when it alone is narrowed to each of `LEVELS`,
    in nats over the whole one's; a narrower one is taken to lose no less."""
    inputs = list(subject.rows.head(ROWS).batches(BATCH))
    try:
        whole = loss_behind(subject, network.origin, inputs)
    except LossNotFinite as error:
        raise LossNotFinite(f"in epoch 1: {error}") from error
    found = {}
    for site in network.places:
        lost = [0.0]
        for level in LEVELS[-2::-1]:
            small = _pruned(network, subject, {site: _chosen(network, subject, site, level)})
            lost.append(max(lost[-1], loss_behind(subject, small, inputs) - whole))
        found[site] = tuple(lost[::-1])
    return found


def parts_left(
    costs: GatedCosts, filters: Mapping[str, tuple[str, int]], losses: Mapping[str, tuple[float, ...]], share: float
) -> dict[str, float]:
    """Return by site which part of its filters stays for a share of the MACs to be left: step by step the site gives
    way that loses least for what it saves, down to the lowest of `LEVELS`."""
    parts = dict.fromkeys(filters, 1.0)

    def macs(given: Mapping[str, float]) -> float:
        counts = {group: torch.tensor(given[site] * count) for site, (group, count) in filters.items()}
        return float(costs.macs(counts))

    def price(site: str) -> float:
        narrower = {**parts, site: parts[site] - STEP}
        lost = np.interp([narrower[site], parts[site]], LEVELS, losses[site])
        return float(lost[0] - lost[1]) / max(1.0, macs(parts) - macs(narrower))

    while macs(parts) > share * costs.dense:
        left = [site for site in parts if parts[site] > LEVELS[0]]
        if not left:
            break
        parts[min(left, key=price)] -= STEP
    return parts


def _chosen(network: GatedNetwork, subject: Subject, site: str, part: float) -> torch.Tensor:
    """Return the gates that begin on: those with most of the filters that a compressor would keep."""
    place, gate = network.places[site], network.gate(site)
    whole = {group.id: group.channels for group in subject.graph.groups}
    keep = {**whole, place.group: max(1, round(part * place.filters))}
    stay = set(subject.compressor.reference.scores.kept(keep)[place.group])
    stays = torch.tensor([channel in stay for channel in _own(network, site)]).double()
    blocks = torch.zeros(gate.gates, dtype=torch.float64).index_add_(0, gate.owner, stays)
    found: torch.Tensor = blocks.argsort(descending=True, stable=True)[: max(1, round(part * gate.gates))]
    return found


def _own(network: GatedNetwork, site: str) -> tuple[int, ...]:
    """Return the channels of its group that a gated site has."""
    place = network.places[site]
    found: tuple[int, ...] = network.origin.kept.get(place.group, tuple(range(place.filters)))
    return found


def _pruned(network: GatedNetwork, subject: Subject, chosen: Mapping[str, torch.Tensor]) -> CompressedNetwork:
    """Return the network of the filters whose gates begin on, its layers refitted one after the other."""
    kept = dict(network.origin.kept)
    for site, on in chosen.items():
        stays = torch.isin(network.gate(site).owner, on).tolist()
        kept[network.places[site].group] = tuple(
            channel for channel, left in zip(_own(network, site), stays, strict=True) if left
        )
    assignment, groups = network.origin.assignment, [network.places[site].group for site in chosen]
    keep = {**assignment.keep, **{group: len(kept[group]) for group in groups}}
    return subject.compressor.compress(replace(assignment, keep=keep), "sequential", kept)


def _take_over(network: GatedNetwork, subject: Subject, small: CompressedNetwork) -> None:
    """Put a smaller network's weights, biases and wider steps into their places."""
    plan = subject.compressor.slicer.plan
    masks = plan.mask(network.origin.kept), plan.mask(small.kept)
    for name in network.trained:
        leaf: Any = small.module.get_submodule(name)
        rows, columns = (
            torch.searchsorted(dim.kept(masks[0]), dim.kept(masks[1]))
            for dim in (plan.dims[name, "out"], plan.dims[name, "in"])
        )
        weight, bias, quantizer = network.weight(name), network.bias(name), network.quantizer(name)
        if len(columns) != leaf.weight.shape[1]:  # in groups: a layer that no gate stands next to
            columns = torch.arange(leaf.weight.shape[1])
        weight[rows[:, None], columns] = leaf.weight.detach()
        bias[rows] = leaf.bias.detach()
        scale = small.layers[name].weight_scale
        if quantizer is None or scale is None:
            continue
        wider = torch.from_numpy(scale.copy()).reshape(-1).log()
        place = rows if len(wider) == len(rows) > 1 else slice(None)
        quantizer.log_step[place] = torch.maximum(quantizer.log_step[place], wider)

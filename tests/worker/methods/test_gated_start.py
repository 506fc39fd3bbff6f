"""Where gating begins: the pruned network's answers, groups narrowed where that costs least."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from app.domain import methods as domain
from tests.worker.methods.digit_subject import rows, subject
from worker.methods.channel_gating import schedule
from worker.methods.gated_costs import GatedCosts, running
from worker.methods.gated_network import GatedNetwork
from worker.methods.gated_start import BEGIN, LEVELS, begin, filters_of, losses_of, parts_left
from worker.methods.training import divergence
from worker.quant.network import CompressedNetwork

PER_LEFT, PER_LAST = 64 * 9 * (12 + 12), 16 * 9 * 12 + 10


def begun(share: float = 0.6, block: int = 1) -> GatedNetwork:
    torch.manual_seed(0)
    network = GatedNetwork(subject(1.0, 8), block).eval()
    begin(network, subject(1.0, 8), share)
    return network


def constant(network: GatedNetwork) -> CompressedNetwork:
    """Return the network as it is stored, its gates as they begin, whatever the input."""
    with torch.no_grad():
        for site in network.places:
            network.gate(site).excite.weight.zero_()
    return network.hard()


def test_begin_when_gates_do_not_look_at_the_input_then_the_pruned_network_s_answers_at_the_share() -> None:
    made, item = constant(begun()), subject(1.0, 8)
    costs = GatedCosts.of(item.graph, made)
    share = costs.macs(running(made, rows().head(8))) / costs.dense
    assert share.unique().numel() == 1 and 0.55 < float(share[0]) <= 0.61
    on = {gate.group: (gate.excite_bias > 0).nonzero()[0].tolist() for gate in made.gates.values()}
    keep = {**made.assignment.keep, **{group: len(left) for group, left in on.items()}}
    kept = {group: tuple(left) for group, left in on.items()}
    small = item.compressor.compress(replace(made.assignment, keep=keep), "sequential", kept)
    x = rows().inputs[0][:128]
    apart = float((made.forward(x) - small.forward(x)).abs().max() / small.forward(x).abs().max())
    assert apart < 0.1  # steps are the wider ones of both networks
    naive = GatedNetwork(item, 1).eval()
    for site, gate in made.gates.items():
        naive.gate(site).excite.bias.data.copy_(torch.from_numpy(gate.excite_bias))
    wanted = item.folded(x)
    (port,) = item.graph.outputs
    losses = [float(divergence(net.forward(x), wanted, port)) for net in (made, constant(naive))]
    assert losses[0] < 0.7 * losses[1]


def test_begin_when_pictures_differ_then_the_same_filters_run_for_each_though_gates_see_them() -> None:
    network = begun()
    for mask in network.hard().masks(rows().inputs[0][:256]).values():
        assert bool((mask == mask[0]).all()) and 0 < int(mask[0].sum()) < mask.shape[1]
    assert all(bool((network.gate(site).excite.weight != 0).all()) for site in network.places)


def test_begin_when_filters_share_gates_then_whole_blocks_are_on_or_off() -> None:
    made = begun(block=4).hard()
    assert {len(gate.excite_bias) for gate in made.gates.values()} == {4, 6}
    for gate in made.gates.values():
        assert set(gate.excite_bias.tolist()) == {-BEGIN, BEGIN}


def test_parts_left_when_one_group_loses_nothing_then_it_gives_way_first() -> None:
    network = begun()
    costs, filters = network.costs, filters_of(network)
    (left, last), none = filters, (0.0,) * len(LEVELS)
    steep = (3.0, 2.0, 1.0, 0.0)
    found = parts_left(costs, filters, {left: none, last: steep}, 0.8)
    assert found[last] == 1.0 and found[left] < 0.75
    spent = costs.dense - (1 - found[left]) * 16 * PER_LEFT + costs.overhead
    assert spent <= 0.8 * costs.dense < spent + 16 * PER_LEFT / 32
    even = parts_left(costs, filters, {left: steep, last: none}, 0.8)
    assert even[last] == LEVELS[0] and even[left] < 1.0
    assert parts_left(costs, filters, {left: steep, last: steep}, 0.01) == {left: LEVELS[0], last: LEVELS[0]}


def test_losses_when_groups_are_narrowed_then_more_is_lost_the_narrower_they_are() -> None:
    for lost in losses_of(begun(), subject(1.0, 8)).values():
        assert lost[-1] == 0.0 and lost[0] > 0.01 and list(lost) == sorted(lost, reverse=True)


def test_schedule_when_filters_begin_off_then_the_share_is_held_at_once_and_else_ramped() -> None:
    held, ramped = (schedule(domain.ChannelGating(start=start, ramp=0.5)) for start in ("important", "all"))  # type: ignore[arg-type]
    assert held.at(0.0)[1] == 1.0
    assert [ramped.at(share)[1] for share in (0.0, 0.1, 0.3, 0.5)] == pytest.approx([0.0, 0.0, 0.5, 1.0])

"""Channel gating as a stage: what it makes runs the same in every form, and its share of the MACs is what was asked."""

from __future__ import annotations

import functools
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from app.domain import methods as domain
from app.domain.budget import Budget
from app.domain.cost import count
from tests.worker.export.written import written
from tests.worker.methods.digit_subject import rows, subject
from tests.worker.quant.digits import device, evaluator, trained
from worker.export.checkpoint import CheckpointRefused, load, read_checkpoint, write_checkpoint
from worker.export.export import ExportRequest, export_all
from worker.export.recount import recount
from worker.export.verify import run_onnx
from worker.methods import registry
from worker.methods.gated_costs import GatedCosts, limited, running, spread_of, spreads
from worker.methods.gated_hard import FARTHEST, STEPS, Seen, at_most, shifted_by, tidied, without
from worker.methods.gated_network import GatedNetwork, places
from worker.methods.gating import Tidy
from worker.methods.protocol import NothingLegal
from worker.quant.network import CompressedNetwork


@functools.cache
def gated(block: int = 2) -> CompressedNetwork:
    """Return the digits network with gates that hang on the input, not trained."""
    torch.manual_seed(0)
    network = GatedNetwork(subject(1.0, 8), block)
    for site in network.places:
        torch.nn.init.normal_(network.gate(site).excite.weight, std=3.0)
        torch.nn.init.zeros_(network.gate(site).excite.bias)
    made = network.eval().hard()
    return at_most(made, trained().graph, rows().head(256), 0.7 * GatedCosts.of(trained().graph, made).dense)


def pictures() -> torch.Tensor:
    return rows().inputs[0][:128]


def test_places_when_groups_differ_then_those_inside_of_blocks() -> None:
    found = places(subject(1.0, 8).network, trained().graph, subject(1.0, 8).compressor.slicer.plan)
    assert [(item.group, item.channels, item.filters) for item in found] == [("left", 12, 16), ("last", 12, 24)]


def test_share_when_asked_for_then_met_from_below_and_counted_by_hand() -> None:
    network, costs = gated(), GatedCosts.of(trained().graph, gated())
    found = spread_of(network, costs, rows().head(256))
    assert 0.62 * costs.dense < found.mean <= 0.7 * costs.dense
    masks = network.masks(pictures()[:1])
    left, last = (int(masks[site].sum()) for site in network.gates)
    whole = count(trained().graph, network.assignment, device()).macs
    per_left, per_last = 64 * 9 * (12 + 12), 16 * 9 * 12 + 10
    gates = sum(gate.macs for gate in network.gates.values()) + 2 * 12 * 64
    wanted = whole - (16 - left) * per_left - (24 - last) * per_last + gates
    active = running(network, rows().head(1))
    assert costs.macs(active).tolist() == [wanted]


def test_training_network_when_settled_then_the_simulation_s_answers() -> None:
    torch.manual_seed(1)
    network = GatedNetwork(subject(1.0, 8), 2)
    for site in network.places:
        torch.nn.init.normal_(network.gate(site).excite.weight, std=3.0)
        torch.nn.init.zeros_(network.gate(site).excite.bias)
    network.eval()
    with torch.no_grad():
        (mine,) = network(pictures())
    stored = network.hard().forward(pictures())
    assert float((mine - stored).abs().max()) < 0.05 * float(stored.abs().max())
    assert (
        0.1 < float(torch.cat([m.float().flatten() for m in network.hard().masks(pictures()).values()]).mean()) < 0.95
    )


def test_gates_when_off_then_the_values_behind_are_exact_zeros() -> None:
    network, seen = gated(), {}

    def note(site: str, value: torch.Tensor) -> torch.Tensor:
        seen[site] = value.clone()
        return value

    network.follow(pictures(), seen=note)
    for site, mask in network.masks(pictures()).items():
        assert bool((~mask).any()) and float(seen[site][~mask].abs().max()) == 0.0
        assert float(seen[site][mask].abs().max()) > 0.0


def test_checkpoint_when_gated_then_the_same_gates_answers_and_bytes() -> None:
    network = gated()
    content = write_checkpoint(network, {})
    stored, _ = read_checkpoint(content)
    assert torch.equal(stored.forward(pictures()), network.forward(pictures()))
    assert write_checkpoint(stored, {}) == content
    plain = recount(write_checkpoint(replace(network, gates={}), {}), device()).totals()["weight_bytes"]
    own = sum(gate.bytes for gate in network.gates.values())
    assert recount(content, device()).totals()["weight_bytes"] == plain + own


def test_checkpoint_when_a_gate_stands_behind_what_it_acts_on_then_refused() -> None:
    network = gated()
    (site, gate), *_ = network.gates.items()
    for wrong in (replace(gate, reads=site), replace(gate, reads="nowhere")):
        with pytest.raises(CheckpointRefused, match="no node before"):
            read_checkpoint(write_checkpoint(replace(network, gates={"left": wrong}), {}))


@pytest.mark.parametrize("always", [False, True])
def test_onnx_when_gated_then_the_simulation_s_answers(always: bool) -> None:
    network = gated()
    if always:
        gates = {site: replace(gate, owner=(-1, -1, *gate.owner[2:-2], 0, 0)) for site, gate in network.gates.items()}
        network = replace(network, gates=gates)
    (found,) = run_onnx(written(network), [pictures()])
    wanted = network.forward(pictures()).numpy()
    assert np.abs(found - wanted).max() < 1e-3 * np.abs(wanted).max()
    assert np.abs(found - replace(network, gates={}).forward(pictures()).numpy()).max() > 0.1


def test_onnx_when_gated_and_float_then_the_simulation_s_answers() -> None:
    network = evaluator().compress(subject(1.0, 8).network.assignment)
    network = replace(network, grids={}, gates=gated().gates)
    (found,) = run_onnx(written(network), [pictures()])
    np.testing.assert_allclose(found, network.forward(pictures()).numpy(), rtol=1e-3, atol=1e-3)


def test_gates_when_tidied_then_filters_that_never_run_go_and_nothing_else_changes() -> None:
    network = gated()
    gates = {
        site: replace(gate, excite_bias=gate.excite_bias - np.float32(1000) * (np.arange(len(gate.excite_bias)) == 1))
        for site, gate in network.gates.items()
    }
    network = replace(network, gates=gates)
    found = {site: Tidy((1,), (0, *range(2, len(gate.excite_bias))), ()) for site, gate in gates.items()}
    small = without(network, subject(1.0, 8), found, Seen.of(network, rows().head(64)))
    assert (small.assignment.keep["left"], small.assignment.keep["last"]) == (14, 22)
    assert small.kept["left"] == (0, 1, *range(4, 16))
    torch.testing.assert_close(small.forward(pictures()), network.forward(pictures()), rtol=1e-4, atol=1e-4)


def test_gates_when_shifted_far_down_then_one_of_each_group_is_left() -> None:
    masks = shifted_by(gated(), -1000.0).masks(pictures())
    assert all(mask.sum(1).eq(2).all() for mask in masks.values())


def test_stage_when_blocks_are_as_wide_as_layers_then_nothing_to_gate() -> None:
    with pytest.raises(NothingLegal, match="blocks of 64"):
        registry.prepare(subject(1.0, 8), domain.ChannelGating(block=64))


def test_stage_when_the_gates_have_no_room_then_said() -> None:
    item = subject(1.0, 8)
    tight = count(item.graph, item.network.assignment, item.device).weight_bytes + 100
    item = replace(item, budget=Budget({"weight_bytes": tight}))
    training = domain.Training(epochs=2, rows=512, batch=32, shift=1)
    how = domain.ChannelGating(training, macs=0.8, block=2, start="all", gate_rate=0.1)
    stage = registry.prepare(item, how)
    while not stage.done:
        stage.fit()
    with pytest.raises(NothingLegal, match="no room"):
        stage.finish()


def test_stage_when_steered_then_gates_near_the_share_and_still_hanging_on_the_input() -> None:
    item = subject(1.0, 8)
    how = domain.Training(epochs=10, rows=768, batch=32, shift=1)
    noisy = {"alone": 0.2, "settled": 0.2, "gate_rate": 0.05}
    steered = domain.ChannelGating(how, macs=0.7, block=2, gamma=20.0, start="all", **noisy)
    stage = registry.prepare(item, steered)
    while not stage.done:
        note = stage.fit().note
    assert abs(float(note.split()[0]) - 70) < 6
    network = stage.finish()
    found = spread_of(network, GatedCosts.of(item.graph, network), rows().head(512))
    whole = GatedCosts.of(item.graph, item.network).dense
    assert network.gates and 0.66 * whole < found.mean <= 0.705 * whole


def test_export_when_gated_then_verified_without_pruned_files(tmp_path: Path) -> None:
    network, item = gated(), subject(1.0, 8)
    request = ExportRequest(
        network, item.graph, item.folded, network.module, evaluator().pictures("full"), item.device, Budget({}), {}
    )
    found = export_all(request, tmp_path)
    assert found.report.failures == []
    told = found.report.gating
    assert told is not None and told["mean"] <= told["p95"] <= told["largest"] <= 1.1 * told["dense"]
    assert any("puts zeros where a gate is off" in note for note in found.report.notes)
    skipping = found.report.skipping
    assert skipping is not None and (skipping.max_error, skipping.top1) == (0.0, 1.0)
    times = {name: item.min_ms for name, item in found.report.latency.items()}
    assert set(times) == {"float", "compressed", "skipping"}
    assert any(f"takes {times['skipping']:.3f} ms" in note for note in found.report.notes)
    kinds = {"onnx", "gated-onnx", "checkpoint", "config", "report", "report-html"}
    assert {file.kind for file in found.files} == kinds
    with pytest.raises(ValueError, match="gates"):
        load(tmp_path / "model.tightfit", "dequantized")


def test_bops_when_counted_then_bits_by_layer_and_gates_in_float32() -> None:
    network, graph = gated(), trained().graph
    whole = count(graph, network.assignment, device())
    active = running(network, rows().head(1))
    left, last = (int(active[group]) for group in ("left", "last"))
    bits = {layer.name: network.assignment.activation_bits[layer.input] * 8 for layer in graph.layers}
    wanted = whole.bops - (16 - left) * 64 * 9 * 12 * (bits["left"] + bits["right"])
    wanted -= (24 - last) * (16 * 9 * 12 * bits["last"] + 10 * bits["head"])
    gates = sum(gate.macs for gate in network.gates.values()) + 2 * 12 * 64
    assert GatedCosts.of(graph, network).bops(active).tolist() == [wanted + 1024 * gates]


def test_share_when_a_tail_is_given_then_the_95th_percentile_is_met_too() -> None:
    network, graph = gated(), trained().graph
    dense = GatedCosts.of(graph, network).dense
    free = spreads(at_most(network, graph, rows().head(256), 0.7 * dense), graph, rows().head(256))
    assert free["macs"].p95 > 0.75 * dense
    for metric in ("macs", "bops"):
        limit = 0.5 * (free[metric].mean + free[metric].p95)
        found = at_most(network, graph, rows().head(256), 0.7 * dense, {metric: limit})
        small = spreads(found, graph, rows().head(256))
        assert small[metric].p95 <= limit and small["macs"].mean < free["macs"].mean
        finest = 2 * FARTHEST / 2**STEPS
        assert spreads(shifted_by(found, finest), graph, rows().head(256))[metric].p95 > limit


def test_limits_when_gated_then_percentiles_whole_weights_and_the_gates_own_time() -> None:
    network, graph = gated(), trained().graph
    found, whole = limited(network, graph, device(), rows()), count(graph, network.assignment, device())
    tails = spreads(network, graph, rows())
    assert (found["macs"], found["bops"]) == (tails["macs"].p95, tails["bops"].p95)
    assert found["weight_bytes"] == whole.weight_bytes + sum(gate.bytes for gate in network.gates.values())
    assert found["peak_activation_bytes"] == whole.peak_activation_bytes
    # two gates: a mean over 64 places of 12 channels and two layers each, at half of 4 giga-MACs, bytes waited for
    (one, other) = network.gates.values()
    moved = [4 * 12 * 65, 4 * (12 + 16)]
    own = 0.0
    for gate in (one, other):
        outs = len(gate.excite_bias)
        own += max(12 * 64 / 2e6, moved[0] / 2e6)
        own += max(12 * 16 / 2e6, moved[1] / 2e6 + 4 * 16 * 13 / 1e6)
        own += max(16 * outs / 2e6, 4 * (16 + outs) / 2e6 + 4 * outs * 17 / 1e6)
    assert found["latency_ms"] == pytest.approx(whole.latency_ms + own, rel=1e-6)


@pytest.mark.parametrize("metric", ["macs", "bops", "latency_ms", "weight_bytes"])
def test_tidied_when_a_limit_has_no_room_for_the_gates_then_said_and_with_room_kept(metric: str) -> None:
    item, network = subject(1.0, 8), gated()
    least = limited(shifted_by(network, -1000.0), item.graph, item.device, rows().head(1024))[metric]
    how = domain.ChannelGating(macs=0.7, block=2, rare=0.0)
    with pytest.raises(NothingLegal, match=f"no room in the limit on {metric}"):
        tidied(network, replace(item, budget=Budget({metric: 0.5 * least})), how)
    made = tidied(network, replace(item, budget=Budget({metric: 1.2 * least})), how)
    assert limited(made, item.graph, item.device, rows().head(1024))[metric] <= 1.2 * least

"""Inputs drawn where there are no data: their layers' statistics are the BatchNorms', and they serve to calibrate."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
import torch
from torch import nn

from tests.worker.quant.digits import assignment, data, device, exported, trained
from worker import synthetic
from worker.data import DatasetRefused, Role, RoleData
from worker.graph.extents import inputs_of
from worker.graph.groups import weighted_layers
from worker.graph.ops.table import module_of
from worker.quant.walk import run
from worker.search.evaluate import EvaluatorOptions, evaluator_of, open_network

CPU = torch.device("cpu")


def strangeness(inputs: torch.Tensor) -> float:
    """Return the mean squared distance of the layers' channel means from their BatchNorms' in units of gamma."""
    folded, found = trained().folded, []

    def after(name: str, value: torch.Tensor) -> torch.Tensor:
        leaf: Any = module_of(folded, nodes[name]) if name in nodes else None
        if getattr(leaf, "bn_beta", None) is not None:
            found.append((value.mean((0, 2, 3)) - leaf.bn_beta).square().mean() / leaf.bn_gamma.square().mean())
        return value

    nodes = {node.name: node for node in weighted_layers(folded)}
    run(folded, inputs, after=after)
    assert len(found) == 5
    return float(torch.stack(found).mean())


def test_synthetic_when_fitted_then_layers_see_what_their_batchnorms_hold_and_the_roles_differ() -> None:
    folded = trained().folded
    drawn = synthetic.synthetic(folded)
    assert {role: part.inputs[0].shape for role, part in drawn.items()} == dict.fromkeys(data(), (64, 1, 8, 8))
    assert all(part.labels is None for part in drawn.values())
    noise = synthetic._noise(inputs_of(folded)[0], 64, torch.Generator().manual_seed(0))
    assert strangeness(noise) > 10 * strangeness(drawn["calibration"].inputs[0])
    assert strangeness(drawn["holdout"].inputs[0]) < 0.05
    calibration, evaluation = (drawn[role].inputs[0] for role in ("calibration", "evaluation"))
    assert float((calibration - evaluation).abs().mean()) > 0.3


def test_synthetic_when_drawn_again_then_the_same_and_by_another_seed_others() -> None:
    one, two, other = (synthetic.synthetic(trained().folded, seed)["evaluation"].inputs[0] for seed in (0, 0, 1))
    assert torch.equal(one, two) and not torch.equal(one, other)


def test_calibration_when_on_drawn_inputs_then_nearer_to_real_pictures_than_on_noise() -> None:
    network = trained()

    def measured(rows: RoleData) -> Mapping[str, float]:
        roles: dict[Role, RoleData] = {**data(), "calibration": rows}
        owner = evaluator_of(network, roles, device(), EvaluatorOptions(), CPU)
        return owner.evaluate(assignment(network.graph, 1.0, 4, 4), "holdout").metrics

    drawn = measured(synthetic.synthetic(network.folded)["calibration"])
    seeds = [torch.Generator().manual_seed(seed) for seed in range(5)]  # one alone lies up to a third off their mean
    noise = [measured(RoleData((torch.randn(64, 1, 8, 8, generator=seed),)))["kl"] for seed in seeds]
    assert drawn["kl"] < 0.75 * sum(noise) / len(noise)
    assert drawn["accuracy"] > 0.93


def test_synthetic_when_there_are_no_batchnorms_then_noise_of_unit_deviation() -> None:
    net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 5))
    (x,) = synthetic.synthetic(open_network(exported(net, (1, 8, 8))).folded)["calibration"].inputs
    assert float(x.std()) == pytest.approx(1, abs=0.05) and float(x.mean().abs()) < 0.1


def test_synthetic_when_inputs_are_ids_then_refused() -> None:
    folded = trained().folded
    held = next(node for node in folded.graph.nodes if node.op == "placeholder").meta
    held["input_dtype"] = torch.int64
    try:
        with pytest.raises(DatasetRefused, match="ids") as refusal:
            synthetic.synthetic(folded)
    finally:
        del held["input_dtype"]
    assert refusal.value.slug == "calibration-required"

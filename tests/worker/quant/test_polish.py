"""Polish: steps are kept only where unseen rows say so; a name stands for one network."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from app.domain.budget import Budget
from app.domain.lifecycle import Verification
from app.domain.space import Assignment
from tests.worker.quant.digits import assignment, device, evaluator, fresh, trained
from worker.export.export import ExportRequest, export_all
from worker.quant.network import CompressedNetwork
from worker.quant.steps import STEPS, parted, polish, with_step
from worker.search.evaluate import Evaluator


def tight() -> Assignment:
    """Return half the channels at 2 and 3 bits."""
    return assignment(trained().graph, 0.5, 2, 3)


def test_polish_when_a_step_helps_then_kept_and_later_steps_start_from_it() -> None:
    losses = {
        "sequential": 1.0,
        "sequential+thorough": 0.8,
        "sequential+redrawn-1": 0.9,
        "sequential+redrawn-2": 0.7,
        "sequential+redrawn-2+bias": 0.6,
    }
    found = polish("sequential", losses.__getitem__)
    assert found.repair == "sequential+redrawn-2+bias"
    assert [step.kept for step in found.steps] == [True, False, True, True]
    assert [(step.before, step.after) for step in found.steps] == [(1.0, 0.8), (0.8, 0.9), (0.8, 0.7), (0.7, 0.6)]


def test_polish_when_nothing_helps_then_the_network_stays() -> None:
    found = polish("fast", lambda name: 1.0 if name == "fast" else 0.999)
    assert found.repair == "fast"
    assert not any(step.kept for step in found.steps)


def test_polish_when_a_network_cannot_be_measured_then_not_kept() -> None:
    def loss(name: str) -> float:
        if name.endswith("thorough"):
            raise ArithmeticError
        return float("nan") if name.endswith("bias") else 1.0

    found = polish("sequential", loss)
    assert found.repair == "sequential"
    assert [step.after for step in found.steps] == [None, 1.0, 1.0, None]


def test_with_step_when_drawn_again_then_the_later_drawing_stands() -> None:
    assert with_step("sequential+thorough", "redrawn-1") == "sequential+redrawn-1"
    assert with_step("sequential+thorough", "bias") == "sequential+thorough+bias"
    assert parted("fast+redrawn-2+bias") == ("fast", ("redrawn-2", "bias"))
    assert max(len(f"sequential+{one}+bias") for one in STEPS) <= 32, "the store's column is that wide"


def test_parted_when_a_step_is_unknown_then_refused() -> None:
    with pytest.raises(ValueError, match="no such polish"):
        parted("sequential+magic")


def kl(owner: Evaluator, repair: str) -> float:
    return owner.evaluate(tight(), "full", repair).metrics["kl"]


def test_polish_when_a_network_is_polished_then_the_evaluation_loss_is_that_of_the_last_step_kept() -> None:
    owner = evaluator()
    found = owner.polish(tight())
    assert [step.name for step in found.steps] == list(STEPS)
    kept = [step.after for step in found.steps if step.kept]
    assert kl(owner, found.repair) == pytest.approx(kept[-1] if kept else kl(owner, "sequential"), abs=1e-9)
    assert kl(owner, found.repair) <= kl(owner, "sequential")


def same(one: CompressedNetwork, two: CompressedNetwork) -> bool:
    layers = ((one.layers[name], two.layers[name]) for name in one.layers)
    return one.grids == two.grids and all(
        np.array_equal(a.weight_int, b.weight_int)  # type: ignore[arg-type]
        and np.array_equal(a.weight_scale, b.weight_scale)  # type: ignore[arg-type]
        and np.array_equal(a.bias, b.bias)
        for a, b in layers
    )


def test_compress_when_a_polished_network_is_made_anew_then_equal_in_every_number() -> None:
    name = "sequential+redrawn-1+bias"
    first, again = evaluator().compress(tight(), name), fresh().compress(tight(), name)
    assert same(first, again)
    assert not same(first, evaluator().compress(tight(), "sequential"))


def test_compress_when_biases_are_corrected_then_means_fit_the_grid_and_the_old_network_stays() -> None:
    owner = evaluator()
    plain = owner.compress(tight(), "sequential+thorough")
    before = {name: layer.bias.copy() for name, layer in plain.layers.items()}
    moved = owner.compress(tight(), "sequential+thorough+bias")
    assert all(np.array_equal(before[name], plain.layers[name].bias) for name in before)
    assert all(torch.equal(plain.module.get_submodule(n).bias, torch.from_numpy(before[n])) for n in before)
    x = owner.compressor.reference.inputs[0]
    wanted = owner.folded(x).mean(0)
    off = (moved.forward(x).mean(0) - wanted).abs()
    scale = torch.from_numpy(np.asarray(moved.layers["head"].weight_scale))
    step = scale * moved.grids[owner.graph.layer["head"].input].scale
    assert bool((off <= 0.5 * step + 1e-3).all()), "no further off than the grid of the biases is coarse"


def test_export_when_a_polished_network_is_exported_then_the_runtime_agrees(tmp_path: Path) -> None:
    owner = evaluator()
    net = owner.compress(tight(), "sequential+thorough+bias")
    pruned = owner.pruned(net.assignment)
    request = ExportRequest(net, owner.graph, owner.folded, pruned, owner.pictures("full"), device(), Budget({}), {})
    report = export_all(request, tmp_path).report
    assert report.state is Verification.verified
    agreement = report.to_json()["agreement"]
    assert agreement["top1"] == 1.0
    assert agreement["max_error"] < 1e-5, "the outputs are float sums: all before them is equal bit for bit"

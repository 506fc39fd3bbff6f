"""The search on the picture of a network that was really read."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from app.domain.budget import Limit, resolve
from app.domain.cost import METRICS, count
from app.domain.space import build_space
from tests.worker.search.pictures import device, random_table
from worker.graph.groups import channel_plan
from worker.graph.picture import draw
from worker.graph.read import read_network
from worker.graph.rewrite import fold_batchnorm
from worker.search.solver import Solver


@pytest.mark.parametrize("name", ["resnet8_cifar10", "vgg7_cifar10", "lenet5bn_mnist"])
def test_allocation_when_the_network_is_real_then_four_limits_are_kept(shared_data: Path, name: str) -> None:
    module = read_network((shared_data / "models" / f"{name}.onnx").read_bytes(), "onnx")
    folded = fold_batchnorm(module)
    graph, profile = draw(folded, channel_plan(folded)), device()
    space = build_space(graph, profile)
    solver = Solver(graph, space, profile)
    states = np.array([np.zeros_like(solver.costs.sizes), solver.costs.sizes - 1])
    found = solver.costs.costs(states)
    for index, state in enumerate(states):
        expected = count(graph, solver.costs.assignment(state), profile)
        assert all(found[m][index] == pytest.approx(expected.value(m), rel=1e-12) for m in METRICS)
    limits = {"bops": 1 / 12, "weight_bytes": 0.3, "peak_activation_bytes": 0.8, "latency_ms": 0.8}
    budget = resolve(tuple(Limit(metric, relative=share) for metric, share in limits.items()), graph, profile)
    one = solver.solve(budget, random_table(space))
    assert one is not None
    costs = count(graph, one, profile)
    assert budget.is_met(costs)
    assert max(costs.value(metric) / limit for metric, limit in budget.limits.items()) > 0.9


def test_loop_when_imported_then_torch_stays_out() -> None:
    code = "import sys, worker.search.loop; print('torch' in sys.modules, 'onnx' in sys.modules)"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.split() == ["False", "False"]

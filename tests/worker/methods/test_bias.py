"""Bias correction of networks: three ways to the means, and what each needs."""

from __future__ import annotations

import copy
from dataclasses import replace

import torch
from torch import Tensor

from tests.worker.methods.digit_subject import rows, subject
from worker.methods.bias import BiasCorrector, input_moments
from worker.quant.rebias import matched
from worker.quant.walk import run


def test_sequential_when_corrected_then_every_layer_s_mean_is_the_float_one_s() -> None:
    given = subject(keep=0.75, bits=3)
    free = replace(
        given.network, grids={}, layers={k: replace(v, weight_scale=None) for k, v in given.network.layers.items()}
    )
    wanted = BiasCorrector(given.folded, free).wanted(rows().inputs)
    made = matched(free, given.graph, wanted, rows().inputs)
    seen: dict[str, Tensor] = {}
    run(made.module, *rows().inputs, after=lambda name, value: seen.setdefault(name, value))
    for name, mean in wanted.items():
        axes = (0, 2, 3) if seen[name].dim() == 4 else (0,)
        assert torch.allclose(seen[name].mean(axes), mean, atol=1e-5)


def test_analytic_when_there_are_no_rows_then_guesses_do_and_what_the_input_decides_is_left() -> None:
    given = subject()
    found = BiasCorrector(given.folded, given.network).analytic()
    assert list(found.left) == ["stem"] and "not known" in found.left["stem"]
    assert len(found.biases) == 5


def test_analytic_when_compared_with_local_then_nearly_the_same_biases() -> None:
    given = subject(keep=1.0, bits=2)
    corrector = BiasCorrector(given.folded, given.network)
    analytic = corrector.analytic(input_moments(given.folded, rows())).biases
    local = corrector.local([rows().inputs]).biases
    for name in ("left", "last", "head"):
        plain = given.folded.get_submodule(name).get_parameter("bias").detach()
        moved = local[name] - plain
        assert float((analytic[name] - local[name]).square().sum()) < 0.25 * float(moved.square().sum())


def test_low_rank_when_given_as_weights_then_every_way_leaves_less_squared_error_and_local_no_mean_error() -> None:
    given = subject(keep=1.0)
    folded, x = given.folded, rows().inputs[0]
    module = copy.deepcopy(folded)
    for name in ("left", "last"):
        weight = module.get_submodule(name).get_parameter("weight")
        u, s, v = torch.linalg.svd(weight.flatten(1), full_matrices=False)
        weight.data = (u[:, :3] * s[:3] @ v[:3]).reshape(weight.shape)
    corrector = BiasCorrector(folded, replace(given.network, module=module, kept={}))
    ways = {
        "analytic": corrector.analytic(input_moments(folded, rows())).biases,
        "local": corrector.local([(x,)]).biases,
    }
    seen: dict[str, Tensor] = {}
    run(folded, x, before=lambda node, source: seen.setdefault(node.name, source.clone()))
    for name in ("left", "last"):
        old, new = (item.get_submodule(name) for item in (folded, module))
        error = new(seen[name]) - old(seen[name])
        plain = float(error.square().mean())
        for way, biases in ways.items():
            moved = (biases[name].float() - old.get_parameter("bias")).reshape(1, -1, 1, 1)
            assert float((error + moved).square().mean()) < (0.95 if way == "analytic" else 0.9) * plain
            if way == "local":
                assert float((error + moved).mean((0, 2, 3)).abs().max()) < 1e-5

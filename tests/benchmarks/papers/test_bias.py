"""The benchmark of data-free quantization: the same function rescaled, claims that need a collapse."""

from __future__ import annotations

from typing import Any

import torch

from benchmarks.papers import bias
from tests.worker.quant.digits import data, trained
from worker.quant.equalise import equalised
from worker.quant.walk import run


def found(spoilt: float = 0.2, back: float = 0.895) -> dict[str, Any]:
    figures = {
        "float": 0.9,
        "rescaled": spoilt,
        "absorbed, analytic": back,
        "absorbed, sequential": back,
        "search": 0.9,
    }
    steps = {step: {"accuracy": value, "agreement": 0.5, "sqnr_db": 20.0} for step, value in figures.items()}
    steps["float"] = {"accuracy": 0.9, "agreement": 1.0}
    return {"resnet8_cifar10": {"steps": steps, "four_bits": {"as it is": {"agreement": 0.25, "sqnr_db": 3.0}}}}


def test_rescaled_when_by_five_octaves_then_the_same_function_with_other_weights() -> None:
    plain, x = trained().folded, data()["holdout"].inputs[0]
    other = bias.rescaled(plain, 5.0)
    assert torch.allclose(run(other, x), run(plain, x), atol=1e-3)
    ranges = [module.get_submodule("left").get_parameter("weight").abs().amax((1, 2, 3)) for module in (other, plain)]
    factor = ranges[0] / ranges[1]
    assert float(factor.max() / factor.min()) > 30 and float(factor.max()) <= 32 and float(factor.min()) >= 1 / 32
    level = equalised(other)
    assert level is not None
    back = level.get_submodule("left").get_parameter("weight").abs().amax((1, 2, 3))
    assert float(back.max() / back.min()) < 10


def test_claims_when_nothing_collapsed_or_too_little_came_back_then_missed() -> None:
    verdicts = {name: [item.holds for item in bias.claims(part)][:3] for name, part in (
        ("good", found()), ("no collapse", found(spoilt=0.8)), ("lost", found(back=0.88)), ("nothing", {}),
    )}  # fmt: skip
    assert verdicts == {
        "good": [True, True, True],
        "no collapse": [False, False, False],
        "lost": [False, False, True],
        "nothing": [None, None, None],
    }


def test_rows_when_there_are_no_labels_then_a_dash_and_a_row_per_step() -> None:
    table = bias.rows(found())
    assert len(table) == 7 and table[1][2:] == ["float", "90.00 %", "100.00 %", "-"]
    assert table[-1] == ["resnet8_cifar10", "4 bits", "as it is", "-", "25.00 %", "3.0 dB"]

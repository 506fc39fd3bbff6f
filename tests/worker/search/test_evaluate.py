"""The evaluator: zero at the baseline, worse with fewer bits, the same whatever came before."""

from __future__ import annotations

import dataclasses
import io
import math
from pathlib import Path

import numpy as np
import pytest
import torch

from app.domain.cost import count
from app.domain.space import widest
from tests.worker.quant.digits import assignment, data, device, evaluator, fresh, random_evaluator, trained
from tests.worker.quant.test_compressor import One
from worker.data import Dataset, DatasetSpec, role_data
from worker.search.evaluate import (
    CACHED_NETWORKS,
    Evaluator,
    EvaluatorOptions,
    batch_size,
    open_evaluator,
    open_network,
    processor,
)


def test_baseline_when_measured_then_kl_is_zero_and_agreement_is_one() -> None:
    found = evaluator().baseline()
    assert (found.metrics["kl"], found.metrics["agreement"]) == (0.0, 1.0)
    assert found.metrics["accuracy"] > 0.93


def test_baseline_when_compared_with_plain_torch_then_the_same_accuracy() -> None:
    held = data()["holdout"]
    with torch.no_grad():
        top = trained().folded(*held.inputs).argmax(1)
    wanted = float((top == held.labels).float().mean())
    assert evaluator().baseline("holdout").metrics["accuracy"] == pytest.approx(wanted, abs=1e-6)


def test_evaluate_when_w8a8_then_hardly_anything_is_lost() -> None:
    found = evaluator().evaluate(assignment(trained().graph, 1.0, 8, 8))
    assert found.metrics["kl"] < 0.01
    assert found.metrics["agreement"] > 0.985


@pytest.mark.parametrize("repair", ["sequential", "fast"])
def test_evaluate_when_bits_fall_then_kl_rises(repair: str) -> None:
    kls = [
        evaluator().evaluate(assignment(trained().graph, 1.0, bits, bits), "full", repair).metrics["kl"]  # type: ignore[arg-type]
        for bits in (8, 4, 3, 2)
    ]
    assert kls == sorted(kls)
    assert kls[-1] > 5 * kls[0]


def test_evaluate_when_channels_fall_then_kl_rises() -> None:
    kls = [
        evaluator().evaluate(assignment(trained().graph, keep, 32, 32)).metrics["kl"] for keep in (1.0, 0.75, 0.5, 0.25)
    ]
    assert kls == sorted(kls)


def test_evaluate_when_the_order_changes_then_the_metrics_do_not() -> None:
    plans = [assignment(trained().graph, keep, bits, 4) for keep, bits in ((1.0, 4), (0.5, 3), (0.75, 8))]
    first, second = fresh(), fresh()
    forwards = [first.evaluate(a, "screen").metrics for a in plans]
    backwards = [second.evaluate(a, "screen").metrics for a in reversed(plans)]
    assert forwards == backwards[::-1]


def test_evaluate_when_fidelities_differ_then_so_do_the_pictures() -> None:
    a = assignment(trained().graph, 1.0, 4, 4)
    found = {fidelity: evaluator().evaluate(a, fidelity).pictures for fidelity in ("screen", "full", "holdout")}  # type: ignore[arg-type]
    assert found == {"screen": 128, "full": 400, "holdout": 600}


def test_evaluate_when_there_are_no_labels_then_kl_and_agreement_remain() -> None:
    owner = random_evaluator(One(), (20,), classes=None)
    assert set(owner.evaluate(widest(owner.graph, 8)).metrics) == {"kl", "agreement", "mse", "cosine"}


def test_evaluate_when_holdout_was_never_asked_for_then_it_never_ran() -> None:
    owner = fresh()
    owner.evaluate(assignment(trained().graph, 1.0, 4, 4), "full")
    assert "holdout" not in owner._float


def test_evaluate_when_holdout_pictures_change_then_compression_does_not() -> None:
    roles = {**data(), "holdout": data()["evaluation"]}
    other = open_evaluator(trained(), roles, device(), EvaluatorOptions(screen=128))
    a = assignment(trained().graph, 0.75, 4, 4)
    one, two = evaluator().compress(a), other.compress(a)
    assert all(np.array_equal(one.layers[name].weight_int, two.layers[name].weight_int) for name in one.layers)  # type: ignore[arg-type]


def test_kl_when_computed_by_hand_then_the_same() -> None:
    owner, a = evaluator(), assignment(trained().graph, 1.0, 3, 4)
    p, q = (
        torch.softmax(x.double(), 1).numpy()
        for (x,) in (owner.float_outputs("full"), owner.outputs(owner.compress(a), "full"))
    )
    by_hand = float((p * (np.log(p) - np.log(q))).sum(1).mean())
    assert owner.evaluate(a).metrics["kl"] == pytest.approx(by_hand, rel=1e-3)


def test_compress_when_asked_again_then_the_same_object_until_pushed_out() -> None:
    owner, a = fresh(), assignment(trained().graph, 1.0, 4, 4)
    first = owner.compress(a)
    assert owner.compress(a) is first
    for bits in range(CACHED_NETWORKS):
        owner.compress(dataclasses.replace(a, activation_bits={**a.activation_bits, "x": 8 + bits + 1}), "none")
    again = owner.compress(a)
    assert again is not first
    assert all(np.array_equal(again.layers[n].bias, first.layers[n].bias) for n in first.layers)


def resnet(shared_data: Path) -> Evaluator:
    """Open the reference network; hold-out pictures are its test set, the others come from its validation set."""
    from PIL import Image

    with np.load(shared_data / "cifar10_jpeg.npz") as stored:
        roles = {}
        for part, count in (("val", 3000), ("test", 2000)):
            ends = stored[f"len_{part}"].astype(np.int64).cumsum()[:count]
            blob, head = stored[f"jpg_{part}"][: ends[-1]].tobytes(), stored["header"].tobytes()
            files = (head + blob[a:b] + b"\xff\xd9" for a, b in zip([0, *ends[:-1]], ends, strict=True))
            pictures = np.stack([np.asarray(Image.open(io.BytesIO(file))) for file in files])
            spec = DatasetSpec("NHWC", 1 / 255, (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616))
            roles[part] = Dataset({"x": pictures}, stored[f"y_{part}"][:count].astype(np.int64), spec)
    opened = open_network((shared_data / "models" / "resnet8_cifar10.onnx").read_bytes(), "onnx")
    ports = opened.graph.inputs
    sets = {
        "calibration": role_data(roles["val"], ports, np.arange(1000)),
        "evaluation": role_data(roles["val"], ports, np.arange(1000, 3000)),
        "holdout": role_data(roles["test"], ports),
    }
    return open_evaluator(opened, sets, device())  # type: ignore[arg-type]


@pytest.mark.slow
def test_evaluate_when_resnet8_on_cifar10_then_the_reference_accuracies_are_reached(shared_data: Path) -> None:
    pytest.importorskip("PIL")
    owner = resnet(shared_data)
    reference = count(owner.graph, widest(owner.graph, 8), device()).bops
    assert owner.baseline("holdout").metrics["accuracy"] == pytest.approx(0.76, abs=0.02)
    floors = {(1.0, 4, 4): 0.73, (0.5, 32, 32): 0.56, (0.5, 3, 4): 0.53, (1.0, 2, 4): 0.66}
    for (keep, weights, activations), floor in floors.items():
        found = owner.evaluate(assignment(owner.graph, keep, weights, activations), "holdout")
        assert found.metrics["accuracy"] >= floor, (keep, weights, activations)
        assert math.isfinite(found.metrics["kl"])
    tight = assignment(owner.graph, 0.5, 3, 4)
    assert count(owner.graph, tight, device()).bops <= reference / 16


@pytest.mark.parametrize(
    ("channels", "size", "wanted"), [(1, 9, 512), (16, 32, 64), (96, 112, 8), (64, 224, 8), (64, 2048, 1)]
)
def test_batch_size_when_activations_are_large_then_fewer_run_at_once(channels: int, size: int, wanted: int) -> None:
    assert batch_size({"x": (1, 3, size, size), "conv": (1, channels, size, size)}) == wanted


def test_processor_when_there_is_no_cuda_device_then_trials_run_on_the_cpu() -> None:
    if torch.cuda.is_available():
        pytest.skip("there is one here")
    owner = random_evaluator(One(), (20,), classes=None)
    network = owner.compress(widest(owner.graph, 8))
    assert processor() == owner.runs_on == torch.device("cpu")
    assert network.on(processor()) is network

"""The whole export of one candidate into a folder."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
import torch

import tightfit
from app.domain.artefacts import KINDS
from worker.export.export import export_all
from worker.export.verify import run_onnx
from worker.quant.network import CompressedNetwork

from .conftest import Lab, host_device


def test_export_all_when_done_then_files_digests_and_report_agree(
    lab: Lab, mixed: CompressedNetwork, tmp_path: Path
) -> None:
    result = export_all(lab.request(mixed), tmp_path / "out")
    assert result.report.failures == []
    assert {file.kind for file in result.files} == set(KINDS) - {"gated-onnx"}
    for file in result.files:
        content = (tmp_path / "out" / file.name).read_bytes()
        assert (len(content), hashlib.sha256(content).hexdigest()) == (file.bytes, file.sha256)
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert report["verification"]["state"] == "verified" == result.to_json()["verification"]
    assert report["manifest"]["seed"] == 3 and report["manifest"]["versions"]["onnx"]
    assert report["ratio_to"]["float"]["weight_bytes"] < 0.25
    assert 0 < report["ratio_to"]["w8a8"]["bops"] < 1
    json.dumps(result.to_json(), allow_nan=False)


def test_export_all_when_repeated_then_artefacts_have_the_same_bytes(
    lab: Lab, mixed: CompressedNetwork, tmp_path: Path
) -> None:
    first, second = (export_all(lab.request(mixed), tmp_path / name) for name in "ab")
    digests = [{f.kind: f.sha256 for f in result.files if "report" not in f.kind} for result in (first, second)]
    assert digests[0] == digests[1]


def test_export_all_when_loaded_again_then_onnx_and_checkpoint_answer_alike(
    lab: Lab, mixed: CompressedNetwork, tmp_path: Path
) -> None:
    export_all(lab.request(mixed), tmp_path)
    inputs = lab.data["evaluation"].inputs
    loaded = tightfit.load(tmp_path / "model.tightfit")
    with torch.no_grad():
        answers = loaded(*inputs).numpy().argmax(1)
    assert (answers == run_onnx((tmp_path / "model.onnx").read_bytes(), inputs)[0].argmax(1)).mean() >= 0.995


@pytest.mark.parametrize(
    ("keep", "weights", "acts"),
    [(1.0, [8], [8]), (1.0, [4], [8]), (0.75, [8, 5, 4, 3, 6, 7], [8, 4]), (0.5, [4, 8], [8])],
)
def test_export_all_when_network_is_a_trained_resnet_then_verified(
    shared_data: Path, tmp_path: Path, keep: float, weights: list[int], acts: list[int]
) -> None:
    resnet = resnet_lab(shared_data)
    net = resnet.compress(keep, weights, acts)
    report = export_all(resnet.request(net, host_device()), tmp_path).report
    print(keep, weights, acts, report.agreement, report.accuracy_onnx, report.file_bytes, f"{report.ratio:.2f}x")
    assert report.failures == []
    assert report.agreement is not None and report.agreement.top1 >= 0.995 and report.agreement.pictures == 1000
    assert report.operators["QLinearConv"] == 9 and report.operators["QLinearAdd"] == 3


_cache: dict[str, Lab] = {}


def resnet_lab(shared_data: Path) -> Lab:
    """ResNet-8 on CIFAR-10, opened once: 256 pictures to calibrate on, 1,000 to evaluate."""
    from worker.data import RoleData
    from worker.search.evaluate import EvaluatorOptions, open_evaluator, open_network

    if "resnet8" not in _cache:
        images, labels = cifar(shared_data)
        x = torch.from_numpy(images).contiguous(memory_format=torch.channels_last)
        y = torch.from_numpy(labels)
        rows = {"calibration": slice(0, 256), "evaluation": slice(256, 1256), "holdout": slice(0, 16)}
        data = {name: RoleData((x[part],), y[part]) for name, part in rows.items()}
        network = open_network((shared_data / "models" / "resnet8_cifar10.onnx").read_bytes(), "onnx")
        evaluator = open_evaluator(network, data, host_device(), EvaluatorOptions(calibration=256))  # type: ignore[arg-type]
        _cache["resnet8"] = Lab(evaluator, data)  # type: ignore[arg-type]
    return _cache["resnet8"]


def cifar(shared_data: Path) -> tuple[np.ndarray, np.ndarray]:  # type: ignore[type-arg]
    """1,256 validation pictures, normalised as the network was trained."""
    import importlib.util

    spec = importlib.util.spec_from_file_location("shared_load", shared_data / "load.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    loaded = module.load("cifar10", splits=("val",))
    mean = np.float32([0.4914, 0.4822, 0.4465]).reshape(1, 3, 1, 1)
    std = np.float32([0.2470, 0.2435, 0.2616]).reshape(1, 3, 1, 1)
    images = loaded["x_val"][:1256].transpose(0, 3, 1, 2).astype(np.float32) / 255
    return (images - mean) / std, loaded["y_val"][:1256].astype(np.int64)

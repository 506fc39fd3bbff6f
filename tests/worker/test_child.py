"""The child's methods on a real network and real digits, through the real sandbox."""

from __future__ import annotations

import hashlib
import json
import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from torch.nn import functional as F

from app.domain.artefacts import KINDS
from app.domain.cost import count
from app.domain.graph import ModelGraph
from app.domain.space import Assignment, widest
from tests.worker.digit_files import DEVICE, SPEC, Net, exported
from worker.sandbox import Child, ChildRefused

WAIT_S = 120.0


class NoLayers(nn.Module):
    """Nothing that could be compressed."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.relu(x)


class Marker:
    """Touches a file when unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


@pytest.fixture(scope="module")
def child() -> Iterator[Child]:
    """One child for every test that does not kill it."""
    with Child() as process:
        yield process
        assert process.alive


@pytest.fixture(scope="module")
def opened(child: Child, files: Path) -> ModelGraph:
    """The picture of the network, opened in the child on one dataset split into three roles."""
    graph = ModelGraph.from_json(child.call("inspect", {"path": str(files / "net.pt2")}, WAIT_S)["graph"])
    request = opening(files, {"all": dataset(files)})
    pictures = child.call("open", request, WAIT_S)["pictures"]
    assert sum(pictures.values()) == 1097
    assert pictures["calibration"] == pytest.approx(219, abs=8)
    return graph


def dataset(files: Path, name: str = "digits.npz") -> dict[str, Any]:
    return {"path": str(files / name), "spec": SPEC}


def opening(files: Path, datasets: dict[str, Any]) -> dict[str, Any]:
    return {"model": str(files / "net.pt2"), "datasets": datasets, "device": DEVICE.to_json(), "options": {}}


def quantized(graph: ModelGraph, weight_bits: int = 8, keep: float = 1.0) -> Assignment:
    """Return an assignment the device allows: 8-bit activations, float output."""
    roles = {item.id: item.role for item in graph.activations}
    frozen = {group.id for group in graph.groups if group.frozen}
    wide = widest(graph, 8)
    return Assignment(
        keep={g: n if g in frozen else max(1, round(keep * n)) for g, n in wide.keep.items()},
        weight_bits=dict.fromkeys(wide.weight_bits, weight_bits),
        activation_bits={name: 32 if roles[name] == "output" else 8 for name in wide.activation_bits},
    )


def refused(child: Child, method: str, params: dict[str, Any]) -> ChildRefused:
    with pytest.raises(ChildRefused) as caught:
        child.call(method, params, WAIT_S)
    return caught.value


def measured(child: Child, assignments: list[Assignment], fidelity: str = "full") -> list[dict[str, Any]]:
    items = [{"assignment": item.to_json(), "fidelity": fidelity} for item in assignments]
    results: list[dict[str, Any]] = child.call("evaluate", {"items": items}, WAIT_S)["results"]
    return results


def metrics(child: Child, assignment: Assignment, fidelity: str = "full") -> dict[str, float]:
    found: dict[str, float] = measured(child, [assignment], fidelity)[0]["measurement"]["metrics"]
    return found


def test_inspect_when_an_archive_is_sound_then_its_picture_comes_back(child: Child, files: Path) -> None:
    found = child.call("inspect", {"path": str(files / "net.pt2"), "format": "pt2"}, WAIT_S)
    graph = ModelGraph.from_json(found["graph"])
    assert (found["format"], found["warnings"]) == ("pt2", [])
    assert graph.parameters == 12 * 9 + 12 + 16 * 12 * 9 + 16 + 160 + 10
    assert count(graph, widest(graph, 8), DEVICE).macs == 12 * 9 * 64 + 16 * 12 * 9 * 16 + 160
    assert (graph.input_shape, len(graph.layers), len(graph.prunable)) == ((1, 8, 8), 3, 2)


def test_inspect_when_the_declared_format_differs_then_refused(child: Child, files: Path) -> None:
    refusal = refused(child, "inspect", {"path": str(files / "net.pt2"), "format": "onnx"})
    assert refusal.slug == "unrecognised-format"


@pytest.mark.parametrize(
    ("content", "slug"),
    [(b"", "unrecognised-format"), (b"abc", "unrecognised-format"), (b"\xff" * 4096, "unrecognised-format"),
     (b"PK\x03\x04" + b"\0" * 64, "invalid-archive"), (b"\x89HDF\r\n\x1a\n" + b"\0" * 64, "unsupported-format")],
    ids=["empty", "three-bytes", "noise", "broken-zip", "keras"],
)  # fmt: skip
def test_inspect_when_the_bytes_are_no_network_then_a_named_refusal(
    child: Child, tmp_path: Path, content: bytes, slug: str
) -> None:
    (tmp_path / "upload").write_bytes(content)
    assert refused(child, "inspect", {"path": str(tmp_path / "upload")}).slug == slug


def test_inspect_when_a_pickle_is_sent_then_refused_and_nothing_runs(child: Child, tmp_path: Path) -> None:
    marker = tmp_path / "marker"
    (tmp_path / "evil.pt2").write_bytes(pickle.dumps([Marker(marker)] * 2))
    assert refused(child, "inspect", {"path": str(tmp_path / "evil.pt2")}).slug == "unsafe-format"
    assert not marker.exists()


@pytest.mark.fault(65)
def test_inspect_when_there_is_no_layer_then_nothing_to_compress(child: Child, tmp_path: Path) -> None:
    (tmp_path / "bare.pt2").write_bytes(exported(NoLayers()))
    assert refused(child, "inspect", {"path": str(tmp_path / "bare.pt2")}).slug == "nothing-to-compress"


@pytest.mark.parametrize(
    ("value", "warnings"),
    [(float("inf"), ["non-finite-weights", "non-finite-outputs"]), (float("-inf"), ["non-finite-weights"])],
)
def test_inspect_when_a_weight_is_not_finite_then_accepted_with_a_warning(
    child: Child, tmp_path: Path, value: float, warnings: list[str]
) -> None:
    """A bias of -inf in front of a ReLU leaves the outputs finite."""
    net = Net()
    where = net.last.weight[0] if value > 0 else next(m for m in net.modules() if isinstance(m, nn.Conv2d)).bias
    assert where is not None
    with torch.no_grad():
        where[0] = value
    (tmp_path / "inf.pt2").write_bytes(exported(net))
    assert child.call("inspect", {"path": str(tmp_path / "inf.pt2")}, WAIT_S)["warnings"] == warnings


def test_inspect_when_new_weights_are_not_finite_then_accepted_with_a_warning(
    child: Child, files: Path, tmp_path: Path
) -> None:
    fresh = Net().state_dict()
    asked = {"path": str(files / "net.pt2"), "weights": str(tmp_path / "new.safetensors")}
    save_file(fresh, tmp_path / "new.safetensors")
    sound = child.call("inspect", asked, WAIT_S)
    fresh["last.weight"][0, 0] = float("nan")
    save_file(fresh, tmp_path / "odd.safetensors")
    odd = child.call("inspect", {**asked, "weights": str(tmp_path / "odd.safetensors")}, WAIT_S)["warnings"]
    assert (sound["warnings"], odd) == ([], ["non-finite-weights", "non-finite-outputs"])
    assert sound["graph"] == child.call("inspect", {"path": str(files / "net.pt2")}, WAIT_S)["graph"]


def test_inspect_when_new_weights_are_a_pickle_then_refused_and_nothing_runs(
    child: Child, files: Path, tmp_path: Path
) -> None:
    marker = tmp_path / "marker"
    (tmp_path / "evil.safetensors").write_bytes(pickle.dumps([Marker(marker)] * 2))
    asked = {"path": str(files / "net.pt2"), "weights": str(tmp_path / "evil.safetensors")}
    assert refused(child, "inspect", asked).slug == "unsafe-format"
    assert not marker.exists()


def test_inspect_dataset_when_it_is_sound_then_its_record_comes_back(child: Child, files: Path) -> None:
    record = child.call("inspect_dataset", dataset(files), WAIT_S)
    expected = {"rows": 1097, "shape": [1, 8, 8], "dtype": "uint8", "has_labels": True, "classes": 10}
    expected["inputs"] = {"x": {"shape": [1, 8, 8], "stored": [1, 8, 8], "dtype": "uint8"}}
    assert {name: record[name] for name in expected} == expected


def test_inspect_dataset_when_a_row_is_not_finite_then_the_row_is_named(child: Child, tmp_path: Path) -> None:
    x = np.zeros((6, 1, 8, 8), np.float32)
    x[3, 0, 0, 0] = np.nan
    np.savez(tmp_path / "nan.npz", x=x)
    refusal = refused(child, "inspect_dataset", {"path": str(tmp_path / "nan.npz")})
    assert (refusal.slug, refusal.errors[0]["pointer"]) == ("invalid-dataset", "/x/3")


def test_inspect_dataset_when_it_holds_objects_then_unsafe_and_nothing_runs(child: Child, tmp_path: Path) -> None:
    marker = tmp_path / "marker"
    np.savez(tmp_path / "objects.npz", x=np.array([Marker(marker)], object))
    assert refused(child, "inspect_dataset", {"path": str(tmp_path / "objects.npz")}).slug == "unsafe-format"
    assert not marker.exists()


def test_evaluate_when_nothing_is_open_then_refused() -> None:
    with Child() as fresh:
        assert refused(fresh, "evaluate", {"items": [{}]}).slug == "invalid-request"


def test_evaluate_when_the_baseline_is_asked_then_it_agrees_with_itself(child: Child, opened: ModelGraph) -> None:
    found = metrics(child, widest(opened, 32))
    assert (found["kl"], found["agreement"]) == (0.0, 1.0)
    assert 0.80 < found["accuracy"] < 1.0


def test_evaluate_when_bits_fall_then_the_loss_rises(child: Child, opened: ModelGraph) -> None:
    eight, two = metrics(child, quantized(opened, 8)), metrics(child, quantized(opened, 2))
    assert eight["agreement"] > 0.98
    assert eight["kl"] < 0.01 < two["kl"]


@pytest.mark.parametrize("fidelity", ["screen", "full", "holdout"])
def test_evaluate_when_asked_again_in_another_order_then_the_same_figures(
    child: Child, opened: ModelGraph, fidelity: str
) -> None:
    asked = [quantized(opened, 4), quantized(opened, 8, keep=0.5), quantized(opened, 2)]
    there = [item["measurement"]["metrics"] for item in measured(child, asked, fidelity)]
    back = [item["measurement"]["metrics"] for item in measured(child, asked[::-1], fidelity)]
    assert there == back[::-1]


def test_evaluate_when_one_of_three_cannot_be_built_then_only_that_one_fails(child: Child, opened: ModelGraph) -> None:
    good = quantized(opened)
    broken = Assignment({**good.keep, opened.prunable[0].id: 0}, good.weight_bits, good.activation_bits)
    before, failed, after = measured(child, [good, broken, good])
    assert before["measurement"]["metrics"] == after["measurement"]["metrics"]
    assert failed["failure"]["kind"] == "failed"
    assert failed["failure"]["detail"]


def test_open_when_a_role_is_missing_then_refused_by_name(child: Child, files: Path) -> None:
    with Child() as fresh:
        refusal = refused(fresh, "open", opening(files, {"calibration": dataset(files), "evaluation": dataset(files)}))
    assert refusal.slug == "calibration-required"
    assert "holdout" in refusal.detail


@pytest.mark.parametrize(
    ("x", "y", "pointer"),
    [(np.zeros((4, 3, 8, 8)), [0, 1, 2, 3], "/x"), (np.zeros((4, 1, 8, 8)), [0, 1, 12, 3], "/y/2")],
    ids=["channels", "label"],
)
def test_open_when_the_dataset_does_not_fit_then_the_place_is_named(
    child: Child, files: Path, x: Any, y: list[int], pointer: str
) -> None:
    np.savez(files / "unfit.npz", x=x.astype(np.float32), y=np.array(y))
    refusal = refused(child, "open", opening(files, {"all": dataset(files, "unfit.npz")}))
    assert (refusal.slug, refusal.errors[0]["pointer"]) == ("invalid-dataset", pointer)


def test_open_when_the_dataset_is_too_small_to_split_then_refused(child: Child, files: Path) -> None:
    np.savez(files / "one.npz", x=np.zeros((1, 1, 8, 8), np.float32), y=np.array([0]))
    assert refused(child, "open", opening(files, {"all": dataset(files, "one.npz")})).slug == "invalid-dataset"


def test_export_when_the_assignment_is_sound_then_verified_files_with_their_digests(
    child: Child, opened: ModelGraph, tmp_path: Path
) -> None:
    assignment = quantized(opened, 4, keep=0.75)
    costs = count(opened, assignment, DEVICE)
    request = {
        "assignment": assignment.to_json(),
        "limits": {"weight_bytes": costs.weight_bytes, "bops": costs.bops},
        "folder": str(tmp_path / "out"),
        "manifest": {"search": "srh_x"},
    }
    found = child.call("export", request, WAIT_S)
    assert found["verification"] == "verified"
    assert {item["kind"] for item in found["files"]} == set(KINDS) - {"gated-onnx"}
    for item in found["files"]:
        content = (tmp_path / "out" / item["name"]).read_bytes()
        assert (len(content), hashlib.sha256(content).hexdigest()) == (item["bytes"], item["sha256"])
    assert json.loads((tmp_path / "out" / "report.json").read_text())

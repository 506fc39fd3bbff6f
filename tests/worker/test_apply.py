"""A candidate made again from its config: the service's own bytes, and refusals by name."""

from __future__ import annotations

import hashlib
import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from app.domain.artefacts import KINDS
from app.store.query import artefacts
from tests.reliability.rig import Rig
from tests.worker.digit_files import Net, exported
from worker import apply
from worker.export.config import NEEDED, read_config
from worker.export.second_opinion import is_available
from worker.job import Site
from worker.runner import Runner

TRIALS = 6


@dataclass(frozen=True)
class Delivered:
    """What the service handed out: the files by kind, and the record of the candidate."""

    files: dict[str, bytes]
    metrics: dict[str, Any]

    def written(self, folder: Path, **changed: Any) -> Path:
        """Return the path of the config, with some of its entries changed."""
        path = folder / "candidate.config.yaml"
        path.write_bytes(self.files["config"])
        if changed:
            path.write_text(yaml.safe_dump({**yaml.safe_load(self.files["config"]), **changed}, sort_keys=False))
        return path


@pytest.fixture(scope="module")
def delivered(rig: Rig) -> Delivered:
    """A polished candidate of a search, exported by the worker."""
    search = rig.add_search(TRIALS, polish=True, export_top=0)
    site = Site(rig.database, rig.blobs)
    assert Runner(site, search).run() == "finished"
    best = next(
        item for item in rig.candidates(search) if "+" in (item.metrics.get("polish") or {"repair": ""})["repair"]
    )
    runner = Runner(site, search)  # an export is a job of its own
    runner.export(best.id, rig.trials(search)[best.trial_idx])
    runner.close()
    with rig.database.reading() as session:
        files = {item.kind: rig.blobs.path(item.blob_sha).read_bytes() for item in artefacts(session, best.id)}
    return Delivered(files, best.metrics)


def told(capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found


def asked(config: Path, files: Path, out: Path, *more: str) -> list[str]:
    return [
        str(config),
        "--model",
        str(files / "net.pt2"),
        "--data",
        str(files / "digits.npz"),
        "--out",
        str(out),
        *more,
    ]


def test_apply_when_network_and_data_are_the_same_then_the_same_bytes_of_every_file(
    delivered: Delivered, files: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert set(delivered.files) == set(KINDS) - {"gated-onnx"}
    assert "+" in delivered.metrics["polish"]["repair"]  # a step of the polish was kept: it is made again, too
    assert apply.main(asked(delivered.written(tmp_path), files, tmp_path / "out", "--json")) == 0
    found = told(capsys)
    assert (found["verification"], found["same"], found["warnings"]) == ("verified", True, [])
    for kind in ("onnx", "checkpoint", "pruned-onnx", "pruned-pt2", "encodings", "config"):
        assert (tmp_path / "out" / KINDS[kind].file).read_bytes() == delivered.files[kind], kind
    assert {item["kind"] for item in found["files"] if item["same"] is None} == {"report", "report-html", "config"}


@pytest.mark.skipif(not is_available(), reason="openvino is absent: pip install 'tightfit[openvino]'")
def test_apply_when_openvino_is_installed_then_it_is_asked_inside_the_sandbox(
    delivered: Delivered, files: Path, tmp_path: Path
) -> None:
    assert apply.main(asked(delivered.written(tmp_path), files, tmp_path / "out")) == 0
    for report in (delivered.files["report"], (tmp_path / "out" / "report.json").read_bytes()):
        told = json.loads(report)["verification"]["second_opinion"]
        assert told["error"] is None and told["agreement"]["top1"] > 0.95


def test_config_when_delivered_then_it_holds_all_that_decides_and_the_digests_of_the_files(
    delivered: Delivered, rig: Rig, files: Path
) -> None:
    config = read_config(delivered.files["config"])
    assert set(NEEDED) <= set(config)
    assert config["model"]["sha256"] == hashlib.sha256((files / "net.pt2").read_bytes()).hexdigest()
    assert config["datasets"]["all"]["sha256"] == hashlib.sha256((files / "digits.npz").read_bytes()).hexdigest()
    assert config["datasets"]["all"]["spec"]["split_seed"] == 0
    assert config["repair"] == delivered.metrics["polish"]["repair"]
    assert config["device"]["name"] == "bench" and set(config["limits"]) == {"weight_bytes", "bops"}
    assert config["record"]["seed"] == 0 and config["versions"]["torch"]
    assert {kind: config["files"][kind] for kind in ("onnx", "checkpoint")} == {
        kind: hashlib.sha256(delivered.files[kind]).hexdigest() for kind in ("onnx", "checkpoint")
    }
    assert str(rig.folder) not in delivered.files["config"].decode()


def test_apply_when_the_network_is_another_then_refused_by_name_and_forced_on_demand(
    delivered: Delivered, files: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = tmp_path / "other"
    other.mkdir()
    (other / "net.pt2").write_bytes(exported(Net()))
    shutil.copy(files / "digits.npz", other)
    config = delivered.written(tmp_path)
    assert apply.main(asked(config, other, tmp_path / "out")) == 1
    assert "digest-mismatch: model" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
    apply.main(asked(config, other, tmp_path / "out", "--force", "--json"))  # verified or not: random weights
    found = told(capsys)
    assert any(text.startswith("model ") and "the config names" in text for text in found["warnings"])
    assert found["same"] is False
    assert (tmp_path / "out" / "model.onnx").read_bytes() != delivered.files["onnx"]


def test_apply_when_the_dataset_is_another_then_refused_by_its_role(
    delivered: Delivered, files: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = np.load(files / "digits.npz")
    np.savez_compressed(tmp_path / "digits.npz", x=rows["x"][::-1], y=rows["y"][::-1])
    shutil.copy(files / "net.pt2", tmp_path)
    assert apply.main(asked(delivered.written(tmp_path), tmp_path, tmp_path / "out", "--json")) == 1
    problem = told(capsys)["problem"]
    assert problem["slug"] == "digest-mismatch" and "dataset 'all'" in problem["detail"]
    assert "model" not in problem["detail"].split(":")[0]


def test_apply_when_other_versions_made_the_candidate_then_warned(
    delivered: Delivered, files: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    versions = {**read_config(delivered.files["config"])["versions"], "torch": "1.0"}
    config = delivered.written(tmp_path, versions=versions)
    assert apply.main(asked(config, files, tmp_path / "out", "--json")) == 0
    found = told(capsys)
    assert len(found["warnings"]) == 1 and "1.0 made the candidate" in found["warnings"][0]
    assert found["same"] is True  # nothing else changed


def test_apply_when_the_assignment_is_another_then_other_bytes_and_exit_code_3(
    delivered: Delivered, files: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assignment = read_config(delivered.files["config"])["assignment"]
    eight = {**assignment, "weight_bits": dict.fromkeys(assignment["weight_bits"], 8)}
    assert apply.main(asked(delivered.written(tmp_path, assignment=eight), files, tmp_path / "out")) == 3
    lines = capsys.readouterr().out.splitlines()
    assert any("model.onnx" in line and line.endswith("other bytes than delivered") for line in lines)
    assert lines[-1] == "verification: verified"


def test_apply_when_another_opset_is_asked_for_then_other_onnx_files_and_the_same_checkpoint(
    delivered: Delivered, files: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert read_config(delivered.files["config"])["opset"] == 21
    assert apply.main(asked(delivered.written(tmp_path), files, tmp_path / "out", "--opset", "13", "--json")) == 3
    found = told(capsys)
    assert found["verification"] == "verified"
    assert {item["kind"] for item in found["files"] if item["same"] is False} == {"onnx", "pruned-onnx"}
    assert read_config((tmp_path / "out" / "config.yaml").read_bytes())["opset"] == 13
    assert json.loads((tmp_path / "out" / "report.json").read_text())["verification"]["opset"] == 13
    shutil.copy(tmp_path / "out" / "config.yaml", tmp_path / "low.yaml")
    assert apply.main(asked(tmp_path / "low.yaml", files, tmp_path / "again", "--json")) == 0
    assert told(capsys)["same"] is True


def test_apply_when_the_opset_can_not_hold_the_candidate_then_refused_with_the_lowest_that_can(
    delivered: Delivered, files: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assignment = read_config(delivered.files["config"])["assignment"]
    wide = {**assignment, "weight_bits": dict.fromkeys(assignment["weight_bits"], 16)}
    config = delivered.written(tmp_path, assignment=wide)
    assert apply.main(asked(config, files, tmp_path / "out", "--opset", "20", "--json")) == 1
    problem = told(capsys)["problem"]
    assert problem["slug"] == "opset-too-low" and "the lowest that can is 21" in problem["detail"]


def test_apply_when_the_config_names_three_datasets_then_each_is_given_by_its_role(
    delivered: Delivered, files: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = read_config(delivered.files["config"])["datasets"]["all"]
    roles = ("calibration", "evaluation", "holdout")
    config = delivered.written(tmp_path, datasets=dict.fromkeys(roles, whole))
    given = [part for role in roles for part in ("--data", f"{role}={files / 'digits.npz'}")]
    out = tmp_path / "out"
    code = apply.main([str(config), "--model", str(files / "net.pt2"), *given, "--out", str(out), "--json"])
    assert (code, told(capsys)["verification"]) == (3, "verified")  # other rows to calibrate on: other bytes
    assert set(read_config((out / "config.yaml").read_bytes())["datasets"]) == set(roles)


def test_apply_when_the_weights_of_a_version_are_not_given_then_refused(
    delivered: Delivered, files: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = {**read_config(delivered.files["config"])["model"], "weights_sha256": "ab" * 32}
    assert apply.main(asked(delivered.written(tmp_path, model=model), files, tmp_path / "out")) == 1
    assert "digest-mismatch: weights (none)" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("given", "slug"),
    [
        (["--data", "calibration=a.npz", "--data", "evaluation=b.npz"], "dataset-required"),
        (["--data", "holdout=a.npz", "--data", "all=a.npz"], "dataset-required"),
    ],
)
def test_apply_when_datasets_are_not_those_the_config_names_then_refused(
    delivered: Delivered, files: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], given: list[str], slug: str
) -> None:
    assert apply.main([str(delivered.written(tmp_path)), "--model", str(files / "net.pt2"), *given]) == 1
    assert capsys.readouterr().err.startswith(f"{slug}: name --data all=FILE")


@pytest.mark.parametrize(
    "text",
    ["", "[]", "format: other", "format: tightfit-config\nversion: 2", "format: [", "!!python/object:os.system {}"],
)
def test_apply_when_the_config_is_none_then_refused_by_name(
    files: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str
) -> None:
    (tmp_path / "config.yaml").write_text(text)
    assert apply.main(asked(tmp_path / "config.yaml", files, tmp_path / "out")) == 1
    assert capsys.readouterr().err.startswith("invalid-config: ")


def test_apply_when_the_network_is_no_network_then_the_child_refuses_it(
    delivered: Delivered, files: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "net.pt2").write_bytes(b"\x80\x02}q\x00." * 20)
    shutil.copy(files / "digits.npz", tmp_path)
    assert apply.main(asked(delivered.written(tmp_path), tmp_path, tmp_path / "out", "--force")) == 1
    assert capsys.readouterr().err.startswith("unsafe-format: ")

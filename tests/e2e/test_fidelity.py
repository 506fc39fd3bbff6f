"""A search without labels, by the commands a user types: output fidelity stands where accuracy would."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest

from app.domain.words import percent
from tests.worker.digit_files import SPEC
from worker.graph.read import read_network

TIGHTFIT = str(Path(sys.executable).with_name("tightfit"))


class Shell:
    """Types commands against a service; `tell` returns what they print, `say` their JSON."""

    def __init__(self, service: Any) -> None:
        key = (service.folder / "data" / "api_key").read_text().strip()
        self._environment = {**os.environ, "TIGHTFIT_URL": service.url, "TIGHTFIT_KEY": key}

    def tell(self, *words: str) -> str:
        done = subprocess.run([TIGHTFIT, *words], env=self._environment, capture_output=True, text=True, timeout=400)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def say(self, *words: str) -> Any:
        return json.loads(self.tell(*words, "--json"))


@pytest.fixture(scope="module")
def pictures(files: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the digits' file without its labels."""
    file = tmp_path_factory.mktemp("unlabelled") / "digits.npz"
    np.savez(file, x=np.load(files / "digits.npz")["x"])
    return file


@pytest.fixture(scope="module")
def shell(service: Any) -> Shell:
    return Shell(service)


@pytest.fixture(scope="module")
def found(shell: Shell, files: Path, pictures: Path) -> dict[str, Any]:
    """Return a finished search by default settings but for fewer trials."""
    model = shell.say("model", "push", str(files / "net.pt2"))
    spec = ["--layout", SPEC["layout"], "--scale", str(SPEC["scale"])]
    data = shell.say("data", "push", str(pictures), *spec)
    words = ["--model", model["id"], "--data", data["id"], "--device", "generic-npu", "--limit", "bops<=1/4"]
    started = shell.say("search", "run", "--trials", "8", *words)
    return dict(shell.say("search", "show", started["id"]))


@pytest.fixture(scope="module")
def best(found: dict[str, Any], service: Any, shell: Shell) -> dict[str, Any]:
    return dict(shell.say("candidate", "show", service.client.candidates(found["id"])[0]["id"]))


def test_search_when_there_are_no_labels_then_the_best_by_divergence_is_verified(
    found: dict[str, Any], best: dict[str, Any], service: Any
) -> None:
    assert (found["state"], found["outcome"], best["verification"]) == ("completed", "feasible", "verified")
    divergences = [item["metrics"]["holdout"]["kl"] for item in service.client.candidates(found["id"])]
    assert divergences == sorted(divergences)
    front = service.client.get(f"/v1/searches/{found['id']}/front")
    assert front["axes"][0] == "kl"


def test_report_when_there_are_no_labels_then_says_agreement_and_divergence_on_the_holdout(
    best: dict[str, Any], shell: Shell, files: Path, pictures: Path, tmp_path: Path
) -> None:
    for artefact in best["artefacts"]:
        shell.tell("artefact", "get", artefact["id"], "-o", str(tmp_path / f"best.{artefact['kind']}"))
    report = json.loads((tmp_path / "best.report").read_text())
    holdout = report["manifest"]["metrics"]["holdout"]
    assert holdout == best["metrics"]["holdout"]
    assert set(holdout) == {"kl", "agreement", "cosine", "mse"}
    assert report["verification"]["accuracy"] == {"simulated": None, "onnx": None}
    x = np.load(pictures)["x"].astype(np.float32) * np.float32(SPEC["scale"])
    session = onnxruntime.InferenceSession((tmp_path / "best.onnx").read_bytes(), providers=["CPUExecutionProvider"])
    got = np.asarray(session.run(None, {session.get_inputs()[0].name: x})[0]).argmax(1)
    assert (got == _float_answers(files, x)).mean() == pytest.approx(holdout["agreement"], abs=0.05)


def test_candidate_when_there_are_no_labels_then_prints_a_dash_for_accuracy_and_the_agreement(
    best: dict[str, Any], shell: Shell
) -> None:
    line = next(item for item in shell.tell("candidate", "show", best["id"]).splitlines() if "hold-out" in item)
    holdout = best["metrics"]["holdout"]
    assert line.replace("│", " ").split() == [
        *("hold-out", "–"),
        *percent(holdout["agreement"]).split(),
        f"{holdout['kl']:.4f}",
    ]


def _float_answers(files: Path, x: Any) -> Any:
    import torch

    with torch.no_grad():
        scores = read_network((files / "net.pt2").read_bytes())(torch.from_numpy(x))
    return (scores[0] if isinstance(scores, tuple) else scores).argmax(1).numpy()

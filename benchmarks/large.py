"""A network for large pictures (EfficientNet-Lite0, 385 million MACs) from upload to verified file, without labels.

Everything goes through the commands a user types, against a service of its own; the search looks at output fidelity
alone, on upscaled CIFAR-10 pictures. Times are wall seconds per stage, as the service reports the stages.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import torch
from rich.console import Console
from rich.table import Table

import app
from app.client import Client
from app.domain.cost import count
from app.domain.device import DeviceProfile
from app.domain.space import build_space, widest
from benchmarks.cells import SHARED, cell
from benchmarks.networks import arrays
from worker.data import DatasetSpec, read_dataset, role_data, split
from worker.job import MAX_PROBES, pictures
from worker.search.evaluate import EvaluatorOptions, open_evaluator, open_network
from worker.search.sensitivity import probes

MODEL = SHARED / "models" / "efficientnet_lite0_imagenet.onnx"
DEVICES = Path(app.__file__).parent / "devices"
PICTURES, SIZE, TRIALS = 500, 224, 16
LIMIT_S = 1200.0
POLL_S = 0.5
PROBE_STEP = 8
START_S = 120.0


def run(folder: Path | None = None) -> None:
    """Measure the journey and print the time of each stage."""
    if not MODEL.exists():
        print("large: the reference data folder (../shared/data) is absent; nothing measured")
        return
    found = cell(f"large-efficientnet-{TRIALS}", measure)
    table = Table("stage", "seconds")
    for stage, seconds in found["stages"].items():
        table.add_row(stage, f"{seconds:.1f}")
    table.add_row("total", f"{found['seconds']:.1f} (of {LIMIT_S:.0f})")
    Console().print(table)
    print(f"state {found['state']}, verification {found['verification']}, hold-out {found['holdout']}")
    print(f"probes and trials {found['progress']}, failures {found['failures']}")
    shared = cell("large-efficientnet-probes", measure_probes)
    print(
        f"one probe on a shared trunk {shared['shared_s']:.2f} s, alone {shared['alone_s']:.2f} s of processor time, "
        f"{shared['ratio']:.2f} times faster over {shared['probes']} probes; equal metrics: {shared['equal']}"
    )


def measure() -> dict[str, Any]:
    """Serve, upload, search, download; return the times and what came out."""
    with tempfile.TemporaryDirectory(prefix="tightfit-large-") as name:
        folder = Path(name)
        dataset(folder / "pictures.npz")
        port = _free_port()
        environment = {**os.environ, "TIGHTFIT_DATA_DIR": str(folder / "data"), "TIGHTFIT_PORT": str(port)}
        environment["TIGHTFIT_URL"] = f"http://127.0.0.1:{port}"
        log = (folder / "serve.log").open("w+")
        service = subprocess.Popen([_tightfit(), "serve"], env=environment, stdout=log, stderr=log)
        try:
            _wait(environment["TIGHTFIT_URL"], folder / "data" / "api_key")
            return _journey(folder, environment)
        finally:
            service.terminate()
            service.wait(30)
            log.close()


def dataset(file: Path) -> None:
    """Write CIFAR-10 test pictures, upscaled, as bytes and without labels."""
    x = torch.from_numpy(arrays("cifar10")["x_test"][:PICTURES]).permute(0, 3, 1, 2).float()
    large = torch.nn.functional.interpolate(x, size=(SIZE, SIZE), mode="bilinear", align_corners=False)
    np.savez(file, x=large.round().to(torch.uint8).permute(0, 2, 3, 1).numpy())


def _journey(folder: Path, environment: dict[str, str]) -> dict[str, Any]:
    stages: dict[str, float] = {}
    start = last = time.perf_counter()

    def lap(stage: str) -> None:
        nonlocal last
        now = time.perf_counter()
        stages[stage], last = stages.get(stage, 0.0) + now - last, now

    model = _say(environment, "model", "push", str(MODEL))
    _client(environment).wait_ready("models", model["id"])
    lap("push and inspect the network")
    spec = ["--layout", "NHWC", "--scale", str(1 / 128), "--mean", str(127 / 128)]
    data = _say(environment, "data", "push", str(folder / "pictures.npz"), *spec)
    _client(environment).wait_ready("datasets", data["id"])
    lap("push and inspect the pictures")
    request = ["--model", model["id"], "--data", data["id"], "--device", "generic-npu", "--limit", "bops<=1/4"]
    search = _say(environment, "search", "run", "--detach", "--trials", str(TRIALS), "--seed", "0", *request)
    found = search
    while found["state"] in ("queued", "running"):
        time.sleep(POLL_S)
        stage = found.get("stage") or "queued"
        found = _say(environment, "search", "show", search["id"])
        lap(stage)
    result = _best(environment, search["id"], folder) if found["state"] == "completed" else {}
    lap("download")
    return {
        "stages": stages,
        "seconds": time.perf_counter() - start,
        "state": found["state"],
        "progress": [(found.get("progress") or {}).get(name) for name in ("done", "total")],
        "verification": result.get("verification"),
        "holdout": result.get("holdout"),
        "failures": result.get("failures"),
        "problem": found.get("problem"),
    }


def _best(environment: dict[str, str], search: str, folder: Path) -> dict[str, Any]:
    """Download what the best candidate has; return its hold-out figures and verification."""
    found = _say(environment, "search", "show", search)
    best = _say(environment, "candidate", "show", _client(environment).candidates(search)[0]["id"])
    for artefact in best["artefacts"]:
        _say(environment, "artefact", "get", artefact["id"], "-o", str(folder / f"best.{artefact['kind']}"))
    report = next((item for item in best["artefacts"] if item["kind"] == "report"), None)
    document = json.loads((folder / "best.report").read_text()) if report else {}
    return {
        "verification": best.get("verification"),
        "holdout": (best.get("metrics") or {}).get("holdout"),
        "failures": (document.get("verification") or {}).get("failures"),
        "outcome": found.get("outcome"),
    }


def _say(environment: dict[str, str], *words: str) -> Any:
    done = subprocess.run([_tightfit(), *words, "--json"], env=environment, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(words)}: {done.stderr[-500:]}{done.stdout[-500:]}")
    return json.loads(done.stdout)


def measure_probes() -> dict[str, Any]:
    """Measure every `PROBE_STEP`-th probe on a shared trunk and alone, in turn; processor seconds of each."""
    torch.set_num_threads(1)
    opened = open_network(MODEL.read_bytes())
    device = DeviceProfile.from_json(json.loads((DEVICES / "generic-npu.json").read_text()))
    options = EvaluatorOptions(**pictures(count(opened.graph, widest(opened.graph, 32), device).macs))
    with tempfile.TemporaryDirectory(prefix="tightfit-large-") as name:
        dataset(Path(name) / "pictures.npz")
        spec = DatasetSpec("NHWC", 1 / 128, (127 / 128,))
        held = read_dataset(Path(name) / "pictures.npz", spec)
        roles = {role: role_data(held, opened.graph.inputs, rows) for role, rows in split(held, 0).items()}
    evaluator = open_evaluator(opened, roles, device, options)
    listed = probes(opened.graph, build_space(opened.graph, device), MAX_PROBES)
    evaluator.float_outputs("screen")
    seconds, equal, base = {"shared": 0.0, "alone": 0.0}, True, listed[0].assignment
    chosen = listed[1::PROBE_STEP]
    for probe in chosen:
        found = []
        for way, start in (("shared", base), ("alone", None)):
            began = time.process_time()
            found.append(evaluator.evaluate(probe.assignment, "screen", "fast", start).metrics)
            seconds[way] += time.process_time() - began
        equal &= found[0] == found[1]
    per = {f"{way}_s": spent / len(chosen) for way, spent in seconds.items()}
    return {**per, "ratio": per["alone_s"] / per["shared_s"], "probes": len(chosen), "equal": equal}


def _client(environment: dict[str, str]) -> Client:
    key = (Path(environment["TIGHTFIT_DATA_DIR"]) / "api_key").read_text().strip()
    return Client(environment["TIGHTFIT_URL"], key)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _wait(url: str, key: Path) -> None:
    deadline = time.monotonic() + START_S
    while time.monotonic() < deadline:
        with contextlib.suppress(httpx.TransportError):
            if key.exists() and httpx.get(f"{url}/readyz").is_success:
                return
        time.sleep(POLL_S)
    raise RuntimeError("the service did not start")


def _tightfit() -> str:
    return str(Path(sys.executable).with_name("tightfit"))

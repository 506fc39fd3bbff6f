"""The whole journey on real data, against the real service: train, upload, search, download, verify, verdict.

    make demo        (or: python examples/demo.py [FOLDER], which is emptied first; default: .demo)

Exit code 0 only if the compressed network keeps every limit, loses at most two points of hold-out accuracy, and the
exported file agrees with the simulation.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import numpy.typing as npt
import torch
from network import DigitNet, predict, train
from rich.console import Console
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

import tightfit
from app.client import Client
from app.commands.devices import read_record
from app.commands.show import budget_table, search_bar, table
from app.domain.artefacts import suffix_of
from app.domain.words import amount, percent, verdict

ROOT = Path(__file__).resolve().parents[1]
LIMITS = [
    {"metric": "bops", "relative": 0.125},
    {"metric": "weight_bytes", "max": 30_000},
    {"metric": "latency_ms", "relative": 0.9},
]
MAX_DROP, MIN_AGREEMENT = 0.02, 0.995
console = Console(highlight=False)


@dataclass(frozen=True)
class Digits:
    """All 1,797 pictures (uint8, N x 1 x 8 x 8) and which rows train the network."""

    x: npt.NDArray[np.uint8]
    y: npt.NDArray[np.int64]
    trained: npt.NDArray[np.int64]
    rest: npt.NDArray[np.int64]


@dataclass(frozen=True)
class Check:
    """One line of the verdict."""

    what: str
    value: str
    wanted: str
    holds: bool


def digits() -> Digits:
    """Return the digits, 1,000 of them (stratified, seeded) for training."""
    raw = load_digits()
    x = np.round(raw.images * (255 / 16)).astype(np.uint8)[:, None]
    y = raw.target.astype(np.int64)
    trained, rest = train_test_split(np.arange(len(y)), train_size=1000, stratify=y, random_state=0)
    return Digits(x, y, np.sort(trained), np.sort(rest))


def free_port() -> int:
    """Return a port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextlib.contextmanager
def service(folder: Path) -> Iterator[Client]:
    """Run `tightfit serve` on a fresh data folder; yield a client; stop it at the end."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    port = free_port()
    command = [str(Path(sys.executable).with_name("tightfit")), "serve", "--port", str(port)]
    environment = {**os.environ, "TIGHTFIT_DATA_DIR": str(folder), "OMP_NUM_THREADS": "1"}
    environment.pop("TIGHTFIT_DATABASE_URL", None)
    with (folder / "service.log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, env=environment, cwd=ROOT)
        try:
            yield ready_client(process, f"http://127.0.0.1:{port}", folder)
        finally:
            stop(process)


def ready_client(process: subprocess.Popen[bytes], url: str, folder: Path, timeout_s: float = 60.0) -> Client:
    """Wait until the service answers and has written its key."""
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        if process.poll() is not None:
            break
        with contextlib.suppress(httpx.TransportError):
            if (folder / "api_key").exists() and httpx.get(f"{url}/readyz").is_success:
                return Client(url, (folder / "api_key").read_text().strip())
        time.sleep(0.2)
    raise SystemExit(f"the service did not start; the end of its log:\n{(folder / 'service.log').read_text()[-2000:]}")


def stop(process: subprocess.Popen[bytes]) -> None:
    """Ask the service to stop, and insist after a while."""
    if process.poll() is None:
        process.send_signal(signal.SIGINT)
        try:
            process.wait(15)
        except subprocess.TimeoutExpired:
            process.kill()


def trained_network(data: Digits) -> DigitNet:
    """Train the network and say how good it is."""
    begin = time.monotonic()
    network = train(data.x[data.trained], data.y[data.trained])
    accuracy = float((predict(network, data.x[data.rest]) == data.y[data.rest]).mean())
    console.print(
        f"  trained on 1,000 digits in {time.monotonic() - begin:.1f} s: {percent(accuracy)} on the other 797"
    )
    return network


def search_body(model: dict[str, Any], dataset: dict[str, Any], device: dict[str, Any]) -> dict[str, Any]:
    """Return the request: three hard limits at once."""
    return {
        "name": "demo",
        "model_id": model["id"],
        "dataset": {"all": dataset["id"]},
        "device_id": device["id"],
        "limits": LIMITS,
        "search": {"trials": 40, "seed": 0},
        "export_top": 1,
    }


def run_onnx(path: Path, x: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
    """Run an exported file in ONNX Runtime (its telemetry off before it is imported) on all pictures."""
    os.environ["ORT_DISABLE_TELEMETRY"] = "1"
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    inputs = x.astype(np.float32) / np.float32(255)
    return np.asarray(session.run(None, {session.get_inputs()[0].name: inputs})[0])


def simulated(path: Path, x: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
    """Run the reloaded checkpoint's simulation on all pictures."""
    with torch.no_grad():
        return np.asarray(tightfit.load(path)(torch.from_numpy(x).float() / 255).numpy())


def journey(client: Client, data: Digits, folder: Path) -> tuple[dict[str, Any], dict[str, Any], dict[str, Path]]:
    """Train, upload, search, download; return the search, its best candidate and the files."""
    console.rule("1. a trained network", align="left")
    network = trained_network(data)
    console.rule("2. upload network, data, device", align="left")
    model = client.push_module(network, (torch.zeros(2, 1, 8, 8),), "digits")
    rows = data.rest
    dataset = client.push_dataset(
        {"x": data.x[rows], "y": data.y[rows]}, "digits", {"layout": "NCHW", "scale": 1 / 255}
    )
    device = client.push_device(read_record(ROOT / "examples" / "device.json"))
    groups = [group for group in model["graph"]["groups"] if group["frozen"] is None]
    console.print(
        f"  model {model['id']}: {len(model['graph']['layers'])} layers, {len(groups)} prunable channel groups"
    )
    console.print(f"  dataset {dataset['id']}: {dataset['rows']} pictures   device {device['id']}: {device['name']}")
    console.rule("3. search inside the budget", align="left")
    with search_bar(console) as show:
        search = client.run_search(search_body(model, dataset, device), show)
    found = client.candidates(search["id"])
    if not found:
        raise SystemExit(f"no candidate: {verdict(search)} {search.get('error') or ''}")
    candidate = client.get(f"/v1/candidates/{found[0]['id']}")
    console.rule("4. download", align="left")
    names = {
        "onnx": "digits.onnx",
        "checkpoint": "digits.checkpoint.zip",
        "report": "report.json",
        "report-html": "report.html",
    }
    files = {
        item["kind"]: client.download(item["id"], folder / names.get(item["kind"], f"digits{suffix_of(item['kind'])}"))
        for item in candidate["artefacts"]
    }
    for kind, path in files.items():
        console.print(f"  {kind:<11} {amount('weight_bytes', path.stat().st_size):>8}  {os.path.relpath(path, ROOT)}")
    return search, candidate, files


def checks(search: dict[str, Any], candidate: dict[str, Any], files: dict[str, Path], data: Digits) -> list[Check]:
    """Return the verdict, line by line."""
    baseline = search["baseline"]["holdout"]["accuracy"]
    holdout = candidate["metrics"]["holdout"]["accuracy"]
    ran, model = run_onnx(files["onnx"], data.x), simulated(files["checkpoint"], data.x)
    agreement = float((ran.argmax(1) == model.argmax(1)).mean())
    everywhere = float((ran.argmax(1)[data.rest] == data.y[data.rest]).mean())
    limits = candidate["budget"]
    kept, asked = sum(row["met"] for row in limits), sum(row["origin"] == "request" for row in limits)
    sizes, latency = candidate["report"]["file_bytes"], candidate["report"]["latency"]
    return [
        Check(
            "limits kept, the device's own too",
            str(kept),
            str(len(limits)),
            kept == len(limits) and asked == len(LIMITS),
        ),
        Check("outcome", str(search["outcome"]), "feasible", search["outcome"] == "feasible"),
        Check("verification", str(candidate["verification"]), "verified", candidate["verification"] == "verified"),
        Check("hold-out accuracy, float", percent(baseline), "", True),
        Check("hold-out accuracy, compressed", percent(holdout), "within 2 points", holdout >= baseline - MAX_DROP),
        Check("ONNX Runtime on the 797 unseen", percent(everywhere), "", True),
        Check("ONNX = simulation (top-1, 1,797)", percent(agreement), "at least 99.5 %", agreement >= MIN_AGREEMENT),
        Check("ONNX file", change("weight_bytes", sizes["float_onnx"], sizes["onnx"]), "", True),
        Check(
            "latency here", change("latency_ms", latency["float"]["min_ms"], latency["compressed"]["min_ms"]), "", True
        ),
    ]


def change(metric: str, before: float, after: float) -> str:
    """Return "before → after (n times less)"."""
    return f"{amount(metric, before)} → {amount(metric, after)} ({before / after:.1f}x)"


def show_verdict(lines: list[Check], candidate: dict[str, Any]) -> None:
    """Print the budget table and the verdict."""
    console.rule("5. verdict", align="left")
    console.print(budget_table(candidate["budget"]))
    rows = [(line.what, line.value, line.wanted, "ok" if line.holds else "NO") for line in lines]
    console.print(table("Verdict", ("check", "value", "wanted", ""), rows))
    for note in candidate["report"].get("notes", []):
        console.print(f"note: {note}", style="dim")


def main(folder: Path = ROOT / ".demo") -> int:
    """Run the demo in a folder of its own; return the exit code."""
    begin = time.monotonic()
    data = digits()
    with service(folder) as client:
        search, candidate, files = journey(client, data, folder)
        lines = checks(search, candidate, files, data)
    show_verdict(lines, candidate)
    good = all(line.holds for line in lines)
    style = "bold green" if good else "bold red"
    console.print(
        f"{'Everything holds' if good else 'Something does not hold'}; {time.monotonic() - begin:.0f} s", style=style
    )
    return 0 if good else 1


if __name__ == "__main__":
    torch.set_num_threads(1)
    sys.exit(main(*map(Path, sys.argv[1:2])))

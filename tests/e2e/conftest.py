"""The real service in a process of its own, a finished search in it, and a headless Chromium that reports trouble."""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from app.client import Client

ROOT = Path(__file__).resolve().parents[2]
_LINK = re.compile(rb"https?://\S+/login\?token=\S+")


@dataclass
class Service:
    """A running service: its address, the login link it printed, and a client."""

    url: str
    link: str
    client: Client
    folder: Path


@dataclass
class Watched:
    """A page, and everything it complained about."""

    page: Any
    complaints: list[str] = field(default_factory=list)


@pytest.fixture(scope="session")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    folder = tmp_path_factory.mktemp("service")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    log = folder / "service.log"
    environment = {**os.environ, "TIGHTFIT_DATA_DIR": str(folder / "data"), "OMP_NUM_THREADS": "1"}
    command = [str(Path(sys.executable).with_name("tightfit")), "serve", "--port", str(port)]
    with log.open("wb") as out:
        process = subprocess.Popen(command, stdout=out, stderr=subprocess.STDOUT, env=environment, cwd=ROOT)
    try:
        link = _printed_link(process, log, f"http://127.0.0.1:{port}")
        key = (folder / "data" / "api_key").read_text().strip()
        yield Service(f"http://127.0.0.1:{port}", link, Client(f"http://127.0.0.1:{port}", key), folder)
    finally:
        process.send_signal(signal.SIGINT)
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()


def _printed_link(process: subprocess.Popen[bytes], log: Path, url: str) -> str:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and process.poll() is None:
        found = _LINK.search(log.read_bytes())
        if found is not None and _is_ready(url):
            return found[0].decode()
        time.sleep(0.2)
    raise AssertionError(f"the service did not start:\n{log.read_text()[-3000:]}")


def _is_ready(url: str) -> bool:
    try:
        return httpx.get(f"{url}/readyz").is_success
    except httpx.TransportError:
        return False


@pytest.fixture(scope="session")
def search(service: Service) -> dict[str, Any]:
    """A small finished search on digits."""
    sys.path.insert(0, str(ROOT / "examples"))
    import torch
    from network import train
    from sklearn.datasets import load_digits

    raw = load_digits()
    x = np.round(raw.images * (255 / 16)).astype(np.uint8)[:, None]
    network = train(x[:800], raw.target[:800].astype(np.int64), epochs=5)
    client = service.client
    model = client.push_module(network, (torch.zeros(2, 1, 8, 8),), "digits")
    spec = {"layout": "NCHW", "scale": 1 / 255}
    data = client.push_dataset({"x": x[800:], "y": raw.target[800:]}, "digits", spec)
    return client.run_search(
        {
            "name": "e2e",
            "model_id": model["id"],
            "dataset": {"all": data["id"]},
            "device_id": "generic-npu",
            "limits": [{"metric": "bops", "relative": 0.25}, {"metric": "weight_bytes", "max": 60_000}],
            "search": {"trials": 12, "seed": 0},
            "export_top": 1,
        }
    )


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    executable = shutil.which("chromium")
    if executable is None:
        pytest.skip("no chromium on PATH (apt-get install chromium)")
    playwright = pytest.importorskip("playwright.sync_api")
    with playwright.sync_playwright() as engine:
        browser = engine.chromium.launch(executable_path=executable, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def watched(browser: Any, service: Service, request: pytest.FixtureRequest) -> Iterator[Watched]:
    """A logged-in page; the test fails when the console showed an error or the policy was violated."""
    options = getattr(request, "param", {})
    context = browser.new_context(**{"viewport": {"width": 1280, "height": 900}, **options})
    page = context.new_page()
    made = Watched(page)
    page.on("console", lambda message: made.complaints.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: made.complaints.append(str(error)))
    page.goto(service.link)
    yield made
    context.close()
    assert made.complaints == []

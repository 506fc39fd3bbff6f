"""OpenTelemetry by FastAPI's own switch: a real service sends to a receiver here, and without the switch to nobody."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import httpx
import pytest

pytest.importorskip("opentelemetry.exporter.otlp.proto.http", reason="tightfit[otel] is not installed")

ROOT = Path(__file__).resolve().parents[2]
START_S = 60.0


@contextmanager
def receiver() -> Iterator[tuple[str, list[tuple[str, bytes]]]]:
    """Take what is sent: yield the address and a list of (path, body)."""
    taken: list[tuple[str, bytes]] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            taken.append((self.path, self.rfile.read(int(self.headers["content-length"]))))
            self.send_response(200)
            self.end_headers()

        def log_message(self, format: str, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}", taken
    finally:
        server.shutdown()
        server.server_close()


def read_devices(folder: Path, **settings: str) -> str:
    """Run a service, read its devices, stop it; return the key that was used."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    environment = {
        **os.environ,
        "TIGHTFIT_DATA_DIR": str(folder),
        "TIGHTFIT_DATABASE_URL": "",
        "TIGHTFIT_PORT": port,
        "OTEL_EXPORTER_OTLP_COMPRESSION": "none",
        **settings,
    }
    process = subprocess.Popen([sys.executable, "-m", "app.supervisor", "--workers", "0"], cwd=ROOT, env=environment)
    try:
        deadline = time.monotonic() + START_S
        while time.monotonic() < deadline:
            with suppress(httpx.TransportError):
                if httpx.get(f"http://127.0.0.1:{port}/healthz").is_success:
                    break
            time.sleep(0.1)
        key = (folder / "api_key").read_text().strip()
        headers = {"Authorization": f"Bearer {key}"}
        assert httpx.get(f"http://127.0.0.1:{port}/v1/devices", headers=headers).is_success
        return key
    finally:
        process.terminate()  # what waits to be sent is sent before it ends
        process.wait(30)


@pytest.mark.timeout(120)
def test_service_when_telemetry_is_switched_on_then_a_span_per_request_arrives_and_no_key(tmp_path: Path) -> None:
    with receiver() as (address, taken):
        key = read_devices(tmp_path, TIGHTFIT_OTEL="1", OTEL_EXPORTER_OTLP_ENDPOINT=address)
    spans = b"".join(body for path, body in taken if path == "/v1/traces")
    assert b"GET /v1/devices" in spans
    assert any(path == "/v1/metrics" for path, _ in taken)
    assert not [path for path, body in taken if key.encode() in body]


@pytest.mark.timeout(120)
def test_service_when_telemetry_is_not_switched_on_then_nothing_is_sent(tmp_path: Path) -> None:
    with receiver() as (address, taken):
        read_devices(tmp_path, OTEL_EXPORTER_OTLP_ENDPOINT=address)
    assert taken == []

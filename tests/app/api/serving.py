"""The service on a socket, as `tightfit serve` runs it, and raw requests to it."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from app.actions import Service
from app.main import create_app
from app.settings import Settings
from app.supervisor import server_of


@dataclass(frozen=True)
class Served:
    """A running service."""

    port: int
    key: str
    service: Service
    server: Any
    thread: threading.Thread

    def connect(self) -> socket.socket:
        """Open a connection."""
        return socket.create_connection(("127.0.0.1", self.port), timeout=20)

    def head(self, method: str, path: str, *headers: str) -> bytes:
        """Return a request's head, the key in it."""
        lines = [f"{method} {path} HTTP/1.1", "Host: localhost", f"Authorization: Bearer {self.key}", *headers]
        return ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1")

    def send(self, raw: bytes) -> bytes:
        """Send bytes and return everything that comes back until the connection ends (or rests for 3 s)."""
        with self.connect() as connection:
            connection.sendall(raw)
            return received(connection)


def received(connection: socket.socket, rest_s: float = 3.0) -> bytes:
    """Return what comes until the other side closes, or rests."""
    connection.settimeout(rest_s)
    found = b""
    with contextlib.suppress(TimeoutError, ConnectionResetError):
        while chunk := connection.recv(65536):
            found += chunk
    return found


@contextlib.contextmanager
def serving(folder: Path, **settings: Any) -> Iterator[Served]:
    """Run a service on a free port of this host."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    chosen = Settings(data_dir=folder, port=port, **{"disk_floor_bytes": 0, **settings})
    application = create_app(chosen)
    server = server_of(application, chosen)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    deadline = time.monotonic() + 30
    while not server.started:
        assert time.monotonic() < deadline, "the service did not start"
        time.sleep(0.02)
    try:
        yield Served(port, chosen.key_file.read_text().strip(), application.state.service, server, thread)
    finally:
        server.should_exit = True
        application.state.stopping.set()
        thread.join(20)

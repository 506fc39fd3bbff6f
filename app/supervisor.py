"""`python -m app.supervisor`, which `tightfit serve` becomes: the API in this process, workers beside it.

Migrations come first, in a process of their own, and everything is stopped together.

Workers are separate processes with stable ids (w0, w1, ...), so that a restarted worker finds its own unfinished work.
A worker that dies is started again after a pause that doubles up to a minute while it keeps dying at once.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import os
import signal
import subprocess
import sys
import threading
import time
import traceback
import urllib.error
import urllib.request
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from types import FrameType

    import uvicorn
    from fastapi import FastAPI

    from app.settings import Settings

WATCH_S = 0.5
STOP_S = 20.0
HEALTHY_S = 30.0
MAX_PAUSE_S = 60.0
READY_S = 60.0
SWITCH_S = 0.001
"""After how long a thread that renders an answer lets the one that accepts requests go on (Python's own: 5 ms)."""


@dataclass
class _Slot:
    """One worker process and when it may be started again."""

    executor_id: str
    process: subprocess.Popen[bytes] | None = None
    started: float = 0.0
    pause_s: float = 1.0
    not_before: float = field(default=0.0)


class Workers:
    """Keeps `count` worker processes alive until `stop`."""

    def __init__(self, settings: Settings, count: int) -> None:
        self._environment = {
            # glibc gives threads heaps of their own, each as large as its largest search was: two are enough
            "MALLOC_ARENA_MAX": "2",
            **os.environ,
            "TIGHTFIT_DATA_DIR": str(settings.data_dir),
            "TIGHTFIT_DATABASE_URL": settings.database_url,
        }
        self._slots = [_Slot(f"w{number}") for number in range(count)]
        self._stopping = threading.Event()
        self._lock = threading.Lock()
        self._thread = threading.Thread(target=self._watch, name="workers", daemon=True)

    def start(self) -> None:
        """Start the processes and the thread that watches them."""
        for slot in self._slots:
            self._spawn(slot)
        self._thread.start()

    def stop(self) -> None:
        """Ask every worker to stop; kill those that have not after 20 s."""
        with self._lock:  # nothing is started from here on
            self._stopping.set()
        running = [slot.process for slot in self._slots if slot.process is not None and slot.process.poll() is None]
        for process in running:
            process.send_signal(signal.SIGTERM)
        deadline = time.monotonic() + STOP_S
        for process in running:
            try:
                process.wait(max(0.1, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()

    def _spawn(self, slot: _Slot) -> None:
        command = [sys.executable, "-m", "worker", "--executor-id", slot.executor_id, "--supervised"]
        slot.process = subprocess.Popen(command, env=self._environment)
        slot.started = time.monotonic()

    def _watch(self) -> None:
        while not self._stopping.wait(WATCH_S):
            for slot in self._slots:
                self._revive(slot)

    def _revive(self, slot: _Slot) -> None:
        assert slot.process is not None
        if slot.process.poll() is None:
            return
        now = time.monotonic()
        if slot.not_before <= slot.started:
            slot.pause_s = 1.0 if now - slot.started > HEALTHY_S else min(MAX_PAUSE_S, slot.pause_s * 2)
            slot.not_before = now + slot.pause_s
            print(f"worker {slot.executor_id} ended; starting it again in {slot.pause_s:.0f} s", file=sys.stderr)
        with self._lock:
            if now >= slot.not_before and not self._stopping.is_set():
                self._spawn(slot)


def server_of(application: FastAPI, settings: Settings) -> uvicorn.Server:
    """Return the HTTP server of an application; a signal ends its event streams at once."""
    import uvicorn

    class Server(uvicorn.Server):
        def handle_exit(self, sig: int, frame: FrameType | None) -> None:
            application.state.stopping.set()  # the application's own shutdown comes after the last connection
            super().handle_exit(sig, frame)

    return Server(
        uvicorn.Config(
            application,
            host=settings.host,
            port=settings.port,
            log_level="warning",
            http="h11",
            h11_max_incomplete_event_size=16 * 1024,
            timeout_graceful_shutdown=5,
            timeout_keep_alive=5,
        )
    )


def serve(settings: Settings, workers: int = 1) -> int:
    """Run the service until a signal stops it; return the exit code."""
    gc.disable()  # what is built from here on lives on: looking through it again and again is a quarter of the start
    from app import logs
    from app.main import create_app

    logs.configure(settings)
    application = create_app(settings)
    if not _is_migrated(settings):
        return 1
    team = Workers(settings, workers)
    server = server_of(application, settings)
    team.start()
    threading.Thread(target=_announce, args=(settings,), daemon=True).start()
    _settle()
    try:
        server.run()
    finally:
        team.stop()
    return 0 if server.started else 1


def _settle() -> None:
    """Give back what building the service left free; what it built lives on, and no collection need look through it.

    Such a collection stops all requests: 0.1 s for the 170,000 objects that there are before the first one.
    """
    gc.collect()
    gc.freeze()
    gc.enable()
    sys.setswitchinterval(SWITCH_S)
    with suppress(AttributeError, OSError):  # only glibc has it
        ctypes.CDLL(None).malloc_trim(0)


def _is_migrated(settings: Settings) -> bool:
    """Bring the tables up to date, where they are not, in a child: this process would not shrink again."""
    from app.store.migrate import OtherVersion, is_current, upgrade

    settings.data_dir.mkdir(parents=True, exist_ok=True)
    if is_current(settings.database_url):
        return True
    child = os.fork()  # there are no threads yet, and all connections are closed
    if child == 0:
        code = 1
        try:
            upgrade(settings.database_url)
            code = 0
        except OtherVersion as error:
            print(f"tightfit does not start: {error}", file=sys.stderr, flush=True)
        except BaseException:  # whatever it is must not go on in a copy of the service
            traceback.print_exc()
        finally:
            os._exit(code)
    return os.waitpid(child, 0)[1] == 0


def _announce(settings: Settings) -> None:
    """Print the dashboard's link, with the key in it, once the service answers."""
    url = f"http://{'127.0.0.1' if settings.host in ('0.0.0.0', '::') else settings.host}:{settings.port}"
    deadline = time.monotonic() + READY_S
    while time.monotonic() < deadline:
        try:
            with urllib.request.urlopen(f"{url}/healthz", timeout=2):
                break
        except (urllib.error.URLError, OSError):
            time.sleep(0.1)
    key_file = settings.data_dir / "api_key"
    token = key_file.read_text().strip() if key_file.exists() else ""
    print(f"\ntightfit is ready at {url}\n", flush=True)
    print(f"  dashboard  {url}/login?token={token}", flush=True)
    print(f"  API        {url}/v1   (key in {key_file})\n", flush=True)


def main() -> int:
    """Serve with the settings of the environment."""
    from app.settings import Settings

    parser = argparse.ArgumentParser(prog="python -m app.supervisor")
    parser.add_argument("--workers", type=int, default=1)
    return serve(Settings(), parser.parse_args().workers)


if __name__ == "__main__":
    sys.exit(main())

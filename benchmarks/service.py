"""The service itself: start, memory, uploads, reads while a search runs, how soon a client hears, overhead per trial.

A real service and worker as processes of their own on SQLite; the search is of a digits network.
"""

from __future__ import annotations

import hashlib
import json
import os
import signal
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

import httpx
import numpy as np

from app.client import Client
from benchmarks.claims import Claim, judged
from benchmarks.live import START_S, _answers, _end, _port, _process, _wait
from tests.worker.digit_files import SPEC, write_files

Json = dict[str, Any]
UPLOAD, CHUNK = 1 << 30, 1 << 20
RATE, READ_S = 50.0, 20.0
TRIALS = 60
HEADER = b"\x08\x08"  # the first bytes of an ONNX file; the rest is refused later, by the worker


def run() -> None:
    """Measure and print what holds."""
    found = measure()
    print(json.dumps(found))
    print("\n".join(judged(claims(found), "python -m benchmarks service")))


def measure() -> Json:
    """Measure everything on a fresh data folder."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        with served(folder, workers=0) as (client, pid, ready_s):
            found: Json = {"ready_s": ready_s, "idle_mib": _mib(pid, "VmRSS"), **_upload(client, pid, folder)}
        with served(folder, workers=1) as (client, _, _):
            model, data = pushed(client, write_files(folder))
            return {
                **found,
                **_under_search(client, model, data),
                **_per_trial(client, model, data, folder / "service.log"),
            }


def claims(found: Json) -> list[Claim]:
    """Return what is claimed of the figures."""
    reads = f"{found['read_p95_ms']:.1f} / {found['read_p99_ms']:.1f} ms, {found['reads']} reads"
    share = 1e3 * found["bookkeeping_s"]
    return [
        Claim("ready within 3 s", found["ready_s"] <= 3, f"{found['ready_s']:.2f} s"),
        Claim("idle in 100 MiB", found["idle_mib"] <= 100, f"{found['idle_mib']:.0f} MiB"),
        Claim("1 GiB uploaded in 32 MiB more", found["growth_mib"] <= 32, f"{found['growth_mib']:.0f} MiB"),
        Claim("at 80 MiB/s", found["upload_mib_s"] >= 80,
              f"{found['upload_mib_s']:.0f} MiB/s; plain Python hashing and writing {found['plain_mib_s']:.0f} MiB/s"),
        Claim("reads p95/p99 <= 30/80 ms at 50 per second beside a search",
              found["read_p95_ms"] <= 30 and found["read_p99_ms"] <= 80, reads),
        Claim("event to client p95 <= 1 s", found["event_p95_s"] <= 1, f"{found['event_p95_s']:.2f} s"),
        Claim("engine and bookkeeping <= 0.1 s per trial", found["bookkeeping_s"] <= 0.1,
              f"{share:.0f} ms of {1e3 * found['cycle_s']:.0f} ms between trials' ends; choosing the network "
              f"{1e3 * found['planned_s']:.0f} ms, measuring it {1e3 * found['trial_s']:.0f} ms"),
    ]  # fmt: skip


@contextmanager
def served(folder: Path, workers: int) -> Iterator[tuple[Client, int, float]]:
    """Run a service; yield a client, the process id and the seconds it took to be ready."""
    port = _port()
    url, begun = f"http://127.0.0.1:{port}", time.perf_counter()
    os.environ["TIGHTFIT_DISK_FLOOR_BYTES"] = "0"
    process = _process(folder, "service", ["serve", "--port", str(port), "--workers", str(workers)])
    try:
        _wait(lambda: _answers(url), START_S, "the service's start")
        ready_s = time.perf_counter() - begun
        with Client(url, (folder / "api_key").read_text().strip()) as client:
            yield client, process.pid, ready_s
    finally:
        _end(process)


def _mib(pid: int, name: str) -> float:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(float(line.split()[1]) for line in lines if line.startswith(f"{name}:")) / 1024


def _parts() -> Iterator[bytes]:
    yield HEADER + bytes(CHUNK - len(HEADER))
    for number in range(1, UPLOAD // CHUNK):
        yield number.to_bytes(8, "little") * (CHUNK // 8)


def _upload(client: Client, pid: int, folder: Path) -> Json:
    """Upload 1 GiB; beside it write and hash the same bytes in plain Python."""
    begun, digest = time.perf_counter(), hashlib.sha256()
    with (folder / "plain").open("wb") as file:
        for part in _parts():
            digest.update(part)
            file.write(part)
        file.flush()
        os.fsync(file.fileno())
    plain_s = time.perf_counter() - begun
    (folder / "plain").unlink()
    before, peak, done = _mib(pid, "VmRSS"), [0.0], threading.Event()

    def watch() -> None:
        while not done.wait(0.02):
            peak[0] = max(peak[0], _mib(pid, "VmRSS"))

    thread = threading.Thread(target=watch)
    thread.start()
    begun = time.perf_counter()
    headers = {"Content-Length": str(UPLOAD), "Content-Type": "application/octet-stream",
               "Authorization": client._http.headers["authorization"]}  # fmt: skip
    answer = httpx.post(f"{client.url}/v1/models?name=big", content=_parts(), headers=headers, timeout=300)
    upload_s = time.perf_counter() - begun
    done.set()
    thread.join()
    mib = UPLOAD / (1 << 20)
    return {"upload_status": answer.status_code, "upload_mib_s": mib / upload_s, "plain_mib_s": mib / plain_s,
            "growth_mib": peak[0] - before}  # fmt: skip


def pushed(client: Client, files: Path) -> tuple[str, str]:
    """Upload the digits' network and data; return their ids once both are ready."""
    model = client.push_model(files / "net.pt2", name="net")["id"]
    data = client.push_dataset(files / "digits.npz", name="digits", spec=SPEC)["id"]
    for noun, key in (("models", model), ("datasets", data)):
        client.wait_ready(noun, key)
    return model, data


def _search(client: Client, model: str, data: str, bops: float) -> str:
    """Start a search; return its id once its first trial is done."""
    made = client.create_search(
        {"name": "s", "model_id": model, "dataset": {"all": data}, "device_id": "generic-npu",
         "limits": [{"metric": "bops", "relative": bops}], "search": {"trials": TRIALS, "warm_start": False},
         "export_top": 0, "polish": False}
    )  # fmt: skip
    key: str = made["id"]
    _wait(lambda: client.get(f"/v1/searches/{key}")["progress"]["done"] > 0, 120, "the first trial")
    return key


def _under_search(client: Client, model: str, data: str) -> Json:
    """Read at a fixed rate and listen to the events while a search runs."""
    search = _search(client, model, data, 0.5)
    waits: list[float] = []
    threading.Thread(target=_listen, args=(client, search, waits), daemon=True).start()
    times = _reads(client, search)
    client.wait_search(search)
    p95, p99 = np.percentile(times, [95, 99])
    return {"reads": len(times), "read_p95_ms": 1e3 * p95, "read_p99_ms": 1e3 * p99,
            "event_p95_s": float(np.percentile(waits, 95)), "events": len(waits)}  # fmt: skip


def _per_trial(client: Client, model: str, data: str, log: Path) -> Json:
    """Let a search run with nobody asking; return what a trial takes beside choosing and measuring its network."""
    search = _search(client, model, data, 0.3)
    time.sleep(READ_S)
    client.wait_search(search)
    trials = [item for item in client.trials(search) if item["state"] == "done"]
    ends = sorted(datetime.fromisoformat(item["finished_at"]).timestamp() for item in trials)
    cycle = float(np.median(np.diff(ends[1:])))
    inside = float(np.median([item["seconds"] for item in trials[1:]]))
    told = [line for line in log.read_text().splitlines() if search in line and "trial done" in line]
    planned = float(np.median([float(line.partition("planned_s=")[2].split()[0]) for line in told[1:]]))
    return {"trials": len(trials), "cycle_s": cycle, "trial_s": inside, "planned_s": planned,
            "bookkeeping_s": cycle - inside - planned}  # fmt: skip


def _listen(client: Client, search: str, waits: list[float]) -> None:
    """Note how long after its moment each new event arrives."""
    headers = {"Authorization": client._http.headers["authorization"]}
    begun = time.time()
    with httpx.stream("GET", f"{client.url}/v1/searches/{search}/events", headers=headers, timeout=None) as answer:
        for line in answer.iter_lines():
            if line.startswith("data:"):
                at = datetime.fromisoformat(json.loads(line[5:])["at"]).timestamp()
                if at > begun:
                    waits.append(time.time() - at)


def _reads(client: Client, search: str) -> list[float]:
    """Read pages and records at a fixed rate, late ones counted from when they were due."""
    paths = ("/v1/searches", f"/v1/searches/{search}", "/v1/models", f"/v1/searches/{search}/trials?limit=50")
    times: list[float] = []
    begun = time.perf_counter()

    def one(number: int) -> None:
        due = begun + number / RATE
        time.sleep(max(0.0, due - time.perf_counter()))
        client.get(paths[number % len(paths)])
        times.append(time.perf_counter() - due)

    _spread(one, int(RATE * READ_S))
    return times


def _spread(act: Callable[[int], None], count: int, threads: int = 8) -> None:
    """Call `act` with 0, 1, ... in several threads, each every `threads`-th."""
    workers = [
        threading.Thread(target=lambda first=first: [act(number) for number in range(first, count, threads)])
        for first in range(threads)
    ]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    run()

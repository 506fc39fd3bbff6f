"""`python -m benchmarks soak`: a service and a worker under mixed load for a while; does anything grow that should not?

Uploads (good and hostile), searches with an export and a download, event streams that are dropped, reads of resources
and pages, deletes: all at once on SQLite, as processes of their own. Every few seconds what they hold is noted; the
last two thirds of the time are judged, for a process fills its caches first.
"""

from __future__ import annotations

import os
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import numpy as np

from app.client import ApiProblem, Client
from benchmarks.cells import RESULTS, cell
from benchmarks.claims import Claim, judged, table
from benchmarks.live import _wait
from benchmarks.service import pushed, served
from benchmarks.strips import Strip, strips
from tests.worker.digit_files import SPEC, write_files

Json = dict[str, Any]
Sample = dict[str, float]
MINUTES, WARM_MINUTES, SAMPLE_S, SETTLE_S = 20.0, 1.0, 5.0, 20.0
READ_S, UPLOAD_S, STREAM_S = 0.1, 3.0, 6.0
SLOPE_MIB_H, WAL_MIB = 5.0, 64.0
ROWS = 13
HOSTILE = (b"\x80\x04\x95" + bytes(997), b"\x08\x08" + bytes(1 << 20), b"PK\x03\x04" + bytes(5000))
"""A pickle, an ONNX file of zeros, a broken archive."""
SHOWN = {
    "service_rss": "service MiB", "worker_rss": "worker MiB", "service_fds": "service files",
    "worker_fds": "worker files", "children": "children", "temporary": "temporary files", "wal": "WAL MiB",
    "database": "database MiB", "blobs": "stored files", "blob_mib": "stored MiB",
}  # fmt: skip


@dataclass
class Load:
    """What the load has done so far, and what went wrong."""

    done: dict[str, int] = field(default_factory=dict)
    errors: list[str] = field(default_factory=list)
    stopping: threading.Event = field(default_factory=threading.Event)

    def count(self, name: str) -> None:
        """Note that one more is done."""
        self.done[name] = self.done.get(name, 0) + 1

    def repeat(self, act: Callable[[], None], every_s: float) -> threading.Thread:
        """Act again and again in a thread until the load stops; refusals and faults are kept."""

        def go() -> None:
            while not self.stopping.wait(every_s):
                try:
                    act()
                except (ApiProblem, httpx.HTTPError, TimeoutError) as error:
                    self.errors.append(f"{act.__name__}: {error}"[:300])

        thread = threading.Thread(target=go, name=act.__name__, daemon=True)
        thread.start()
        return thread


def run(minutes: float = MINUTES) -> None:
    """Measure (unless there is a result), print the table and what holds, and draw the figure."""
    name = f"soak-{minutes:g}min"
    found = cell(name, lambda: measure(minutes))
    print(table([["minute", *SHOWN.values()], *_rows(found["samples"])]))
    print(", ".join(f"{count} {what}" for what, count in sorted(found["done"].items())))
    print("\n".join([*found["errors"][:5], *judged(claims(found), f"python -m benchmarks soak --minutes {minutes:g}")]))
    (RESULTS / f"{name}.svg").write_text(strips(f"Soak, {minutes:g} minutes", _strips(found["samples"])))


def claims(found: Json) -> list[Claim]:
    """Return what is claimed of the samples."""
    late = _late(found["samples"])
    idle, after = found["idle"], found["after"]
    made = [_memory(late, name) for name in ("service_rss", "worker_rss")]
    for name in ("service_fds", "worker_fds"):
        told = f"{idle[name]:.0f} before, at most {max(s[name] for s in late):.0f}, {after[name]:.0f} at rest"
        made.append(Claim(f"{SHOWN[name]}: none are left open", after[name] <= idle[name] + 5, told))
    most = max(sample["wal"] for sample in found["samples"])
    left = f"at most {max(s['temporary'] for s in late):.0f}, {after['temporary']:.0f} at rest"
    strays = f"{after['blobs']:.0f} files, {found['referred']} of them referred to"
    return [
        *made,
        Claim("write-ahead log <= 64 MiB", most <= WAL_MIB, f"at most {most:.1f} MiB"),
        Claim("temporary files: none are left", after["temporary"] == 0, left),
        Claim("stored files: all that rows refer to are there", found["missing"] == 0, strays),
        Claim("no fault and no refusal that was not asked for", not found["errors"], f"{len(found['errors'])}"),
    ]


def slope(samples: Sequence[Sample], name: str) -> tuple[float, float]:
    """Return the slope of a line fitted to a value (per hour), and its standard error."""
    x = np.array([sample["minute"] for sample in samples]) / 60
    y = np.array([sample[name] for sample in samples])
    centred = x - x.mean()
    rate = float(centred @ y / (centred @ centred))
    rest = y - y.mean() - rate * centred
    return rate, float(np.sqrt(rest @ rest / max(1, len(x) - 2) / (centred @ centred)))


def _memory(late: Sequence[Sample], name: str) -> Claim:
    rate, error = slope(late, name)
    values = [sample[name] for sample in late]
    told = f"{rate:+.1f} +- {2 * error:.1f} MiB/h, {min(values):.0f} to {max(values):.0f} MiB"
    return Claim(f"{SHOWN[name]}: flat within {SLOPE_MIB_H:g} MiB/h", rate - 2 * error <= SLOPE_MIB_H, told)


def _late(samples: Sequence[Sample]) -> list[Sample]:
    """Return the last two thirds."""
    return [sample for sample in samples if sample["minute"] >= samples[-1]["minute"] / 3]


def _rows(samples: Sequence[Sample]) -> list[list[str]]:
    chosen = np.unique(np.linspace(0, len(samples) - 1, ROWS).round().astype(int))
    return [[f"{samples[k]['minute']:.1f}", *(f"{samples[k][name]:.0f}" for name in SHOWN)] for k in chosen]


def _strips(samples: Sequence[Sample]) -> list[Strip]:
    return [Strip(title, [(s["minute"], s[name]) for s in samples]) for name, title in SHOWN.items()]


def measure(minutes: float) -> Json:
    """Load a fresh service for so many minutes; return the samples, and what is left at rest."""
    with _folder() as folder, served(folder, workers=1) as (client, service, _):
        files, gauge = write_files(folder / "files"), Gauge(folder, service)
        _wait(lambda: client.get("/v1/workers")["items"], 60, "the worker")
        # what is loaded once is loaded; SQLite keeps a file of each connection that there was at a time
        _loaded(client, gauge, files, WARM_MINUTES)
        idle = gauge.sample(0.0)
        load, samples = _loaded(client, gauge, files, minutes)
        referred = gauge.referred()
        return {"minutes": minutes, "idle": idle, "samples": samples, "after": gauge.sample(minutes),
                "done": load.done, "errors": load.errors, "referred": len(referred),
                "missing": sum(not gauge.has(sha) for sha in referred)}  # fmt: skip


def _loaded(client: Client, gauge: Gauge, files: Path, minutes: float) -> tuple[Load, list[Sample]]:
    """Load for so many minutes, then let it rest; return what was done, and samples of the time under load."""
    load, samples, begun = Load(), [], time.monotonic()
    threads = _start(load, client, files)
    while time.monotonic() - begun < 60 * minutes:
        samples.append(gauge.sample((time.monotonic() - begun) / 60))
        time.sleep(SAMPLE_S)
    load.stopping.set()
    for thread in threads:
        thread.join(180)
    time.sleep(SETTLE_S)
    return load, samples


def _start(load: Load, client: Client, files: Path) -> list[threading.Thread]:
    """Start all kinds of load, each with a connection of its own."""

    def searches() -> None:
        _round(client, load, files)

    def uploads() -> None:
        _uploads(client, load, files)

    def reads() -> None:
        _reads(client, load)

    def streams() -> None:
        _stream(client, load)

    plan = ((searches, 0.1), (uploads, UPLOAD_S), (reads, READ_S), (streams, 0.5), (streams, 0.5))
    return [load.repeat(act, every_s) for act, every_s in plan]


def _round(client: Client, load: Load, files: Path) -> None:
    """Upload, search, export, download, delete."""
    model, data = pushed(client, files)
    search = client.create_search(
        {"name": "s", "model_id": model, "dataset": {"all": data}, "device_id": "generic-npu",
         "limits": [{"metric": "bops", "relative": 0.5}], "export_top": 1, "polish": False,
         "search": {"trials": 8, "warm_start": False, "seed": load.done.get("searches", 0)}}
    )  # fmt: skip
    client.wait_search(search["id"])
    for candidate in client.candidates(search["id"]):
        for artefact in candidate["artefacts"]:
            client.download(artefact["id"], files / "artefact")
            load.count("downloads")
    client.delete(f"/v1/models/{model}?cascade=cancel")
    client.delete(f"/v1/datasets/{data}")
    load.count("searches")


def _uploads(client: Client, load: Load, files: Path) -> None:
    """Upload files that are refused, at once or by the worker, and one that is not; delete what was stored."""
    for body in HOSTILE:
        with suppress(ApiProblem):
            row = client.push_model(body, name="hostile")
            with suppress(ApiProblem):
                client.wait_ready("models", row["id"])
            client.delete(f"/v1/models/{row['id']}")
        load.count("hostile uploads")
    row = client.push_dataset(files / "digits.npz", name="short", spec=SPEC)
    client.wait_ready("datasets", row["id"])
    client.delete(f"/v1/datasets/{row['id']}")
    load.count("uploads")


def _reads(client: Client, load: Load) -> None:
    """Read a list, a page of the dashboard and the metrics."""
    for path in ("/v1/searches", "/v1/models", "/v1/devices"):
        client.get(path)
    headers = {"Authorization": client._http.headers["authorization"]}
    for path in ("/searches", "/metrics", "/openapi.json"):
        httpx.get(f"{client.url}{path}", headers=headers).raise_for_status()
    load.count("reads")


def _stream(client: Client, load: Load) -> None:
    """Listen to the newest search for a few seconds, then drop the connection."""
    found = client.get("/v1/searches", limit=1)["items"]
    if not found:
        return
    headers = {"Authorization": client._http.headers["authorization"]}
    end = time.monotonic() + STREAM_S
    with suppress(httpx.ReadTimeout):
        address = f"{client.url}/v1/searches/{found[0]['id']}/events"
        with httpx.stream("GET", address, headers=headers, timeout=STREAM_S) as answer:
            for _ in answer.iter_lines():
                if time.monotonic() > end:
                    break
    load.count("streams")


class Gauge:
    """Looks at a service's processes, files and database from outside."""

    def __init__(self, folder: Path, service: int) -> None:
        self._folder, self._service = folder, service

    def sample(self, minute: float) -> Sample:
        """Return what is held right now; sizes in MiB."""
        worker = _children(self._service)[0]
        blobs = [file.stat().st_size for file in self._folder.glob("blobs/??/*")]
        return {
            "minute": minute,
            "service_rss": _rss(self._service),
            "worker_rss": _rss(worker),
            "service_fds": _files(self._service),
            "worker_fds": _files(worker),
            "children": len(_children(worker)),
            "temporary": self._temporary(),
            "wal": _mib(self._folder / "app.db-wal"),
            "database": _mib(self._folder / "app.db"),
            "blobs": len(blobs),
            "blob_mib": sum(blobs) / 2**20,
        }

    def _temporary(self) -> int:
        """Count unfinished uploads and what lies in the folder for temporary files."""
        return sum(1 for pattern in ("blobs/tmp/*", "tmp/*") for _ in self._folder.glob(pattern))

    def referred(self) -> list[str]:
        """Return the digests of the stored files that rows refer to."""
        query = "SELECT blob_sha FROM model UNION SELECT blob_sha FROM dataset UNION SELECT blob_sha FROM artefact"
        with sqlite3.connect(f"file:{self._folder / 'app.db'}?mode=ro", uri=True) as connection:
            return [sha for (sha,) in connection.execute(query)]

    def has(self, sha: str) -> bool:
        """Tell whether a file is stored."""
        return (self._folder / "blobs" / sha[:2] / sha).exists()


@contextmanager
def _folder() -> Iterator[Path]:
    """Make a folder whose `tmp` takes the temporary files of what is started here."""
    import tempfile

    with tempfile.TemporaryDirectory(prefix="tightfit-soak-") as name:
        folder, before = Path(name), os.environ.get("TMPDIR")
        for part in ("tmp", "files"):
            (folder / part).mkdir()
        os.environ.update(TMPDIR=str(folder / "tmp"), TIGHTFIT_REQUESTS_PER_S="0")
        try:
            yield folder
        finally:
            os.environ.pop("TMPDIR") if before is None else os.environ.update(TMPDIR=before)


def _children(pid: int) -> list[int]:
    found: list[int] = []
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        with suppress(OSError):
            found += map(int, task.read_text().split())
    return sorted(found)


def _rss(pid: int) -> float:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(float(line.split()[1]) for line in lines if line.startswith("VmRSS")) / 1024


def _files(pid: int) -> int:
    return sum(1 for _ in Path(f"/proc/{pid}/fd").iterdir())


def _mib(file: Path) -> float:
    return file.stat().st_size / 2**20 if file.exists() else 0.0

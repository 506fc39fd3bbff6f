"""The sandboxed child: one process that touches user bytes, under limits, spoken to in JSON lines over pipes.

The child has no database handle, a scrubbed environment, its own temporary folder and process group, and limits on
memory, CPU time, files and file size; it starts no processes. Whatever happens to it, the worker lives: every way to
die has a class.
"""

from __future__ import annotations

import json
import os
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

MAX_REPLY = 64 << 20
POLL_S = 0.25
OPEN_S, EXPORT_S = 600.0, 1800.0
"""How long a child may take to open a network with its data, and to export a candidate."""
TAIL_BYTES = 4096
FOLDER_PREFIX = "tightfit-child-"
KEPT_ENVIRONMENT = ("PATH", "LANG", "LC_ALL", "LD_LIBRARY_PATH", "VIRTUAL_ENV", "PYTHONPATH")

KEPT_MEMORY = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": str(1 << 40)}
"""glibc keeps freed memory: giving activations back to the kernel at each layer costs more than computing them."""


@dataclass(frozen=True)
class Limits:
    """What a child may use: address space and file size in bytes, CPU seconds, open files, compute threads.

    `alone`: it may start no process (where the kernel has such a filter: Linux on x86-64 and 64-bit Arm).
    """

    memory_bytes: int = 8 << 30
    file_bytes: int = 4 << 30
    cpu_s: int = 4 * 3600
    files: int = 256
    threads: int = 1
    alone: bool = True


class ChildDied(Exception):
    """The child is gone. `kind` is crashed, out-of-memory, timed-out, limit or cancelled."""

    def __init__(self, kind: str, detail: str) -> None:
        super().__init__(f"{kind}: {detail}")
        self.kind, self.detail = kind, detail


class ChildRefused(Exception):
    """The child is fine and refused its input: `slug` names the problem."""

    def __init__(self, slug: str, detail: str, errors: list[dict[str, Any]]) -> None:
        super().__init__(f"{slug}: {detail}")
        self.slug, self.detail, self.errors = slug, detail, errors


class Child:
    """A long-lived sandboxed process. Use as a context manager; `call` raises ChildDied or ChildRefused."""

    def __init__(self, limits: Limits = Limits(), module: str = "worker.child") -> None:
        self.limits = limits
        self.folder = Path(tempfile.mkdtemp(prefix=FOLDER_PREFIX))
        self._errors = (self.folder / "stderr.txt").open("w+b")
        self._closed = False
        self._buffer = bytearray()
        self._number = 0
        self._process = subprocess.Popen(
            [sys.executable, "-m", module, json.dumps(asdict(limits))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            cwd=self.folder,
            env=self._environment(),
            start_new_session=True,
        )

    def __enter__(self) -> Child:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def pid(self) -> int:
        """Return the process id (and process group id)."""
        return self._process.pid

    @property
    def alive(self) -> bool:
        """Tell whether the process runs."""
        return self._process.poll() is None

    def call(
        self, method: str, params: dict[str, Any], timeout_s: float, cancelled: Callable[[], bool] | None = None
    ) -> Any:
        """Send a request and wait for its result. `cancelled` is asked four times a second; True kills the child."""
        if self._closed:
            raise ChildDied("crashed", "the child is already closed")
        self._number += 1
        request = json.dumps({"id": self._number, "method": method, "params": params}).encode() + b"\n"
        deadline = time.monotonic() + timeout_s
        try:
            self._send(request)
        except (BrokenPipeError, OSError) as error:
            raise self._death() from error
        reply = self._receive(deadline, timeout_s, cancelled)
        if "error" in reply:
            error_ = reply["error"]
            if error_.get("kind") == "refused":
                raise ChildRefused(error_["slug"], error_["detail"], error_.get("errors", []))
            self.close()
            raise ChildDied(error_.get("kind", "crashed"), error_["detail"])
        return reply["result"]

    def close(self) -> None:
        """Kill the whole process group and remove the folder; once, as the process id may be a stranger's later."""
        if self._closed:
            return
        self._closed = True
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                with suppress(OSError):
                    pipe.close()
        self._errors.close()
        shutil.rmtree(self.folder, ignore_errors=True)

    def _send(self, request: bytes) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(request)
        self._process.stdin.flush()

    def _receive(self, deadline: float, timeout_s: float, cancelled: Callable[[], bool] | None) -> dict[str, Any]:
        assert self._process.stdout is not None
        stream = self._process.stdout.fileno()
        while (line := self._line()) is None:
            if cancelled is not None and cancelled():
                self.close()
                raise ChildDied("cancelled", "the search was cancelled")
            left = deadline - time.monotonic()
            if left <= 0:
                self.close()
                raise ChildDied("timed-out", f"no answer within {timeout_s:.0f} s")
            if select.select([stream], [], [], min(POLL_S, left))[0]:
                chunk = os.read(stream, 1 << 20)
                if not chunk:
                    raise self._death()
                self._buffer += chunk
        try:
            reply = json.loads(line)
        except (ValueError, RecursionError):
            reply = None
        if not _is_reply(reply, self._number):
            self.close()
            raise ChildDied("crashed", "the child answered something other than the protocol's JSON")
        return dict(reply)

    def _line(self) -> bytes | None:
        end = self._buffer.find(b"\n")
        if max(end, len(self._buffer) if end < 0 else 0) > MAX_REPLY:
            self.close()
            raise ChildDied("limit", f"the child answered more than {MAX_REPLY} bytes")
        if end < 0:
            return None
        line = bytes(self._buffer[:end])
        del self._buffer[: end + 1]
        return line

    def _death(self) -> ChildDied:
        """Classify a process that is gone: the kernel's out-of-memory killer sends SIGKILL."""
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(timeout=5)
        code = self._process.poll()
        tail = self._tail()
        self.close()
        if code == -signal.SIGKILL or "MemoryError" in tail or "can't allocate memory" in tail:
            return ChildDied("out-of-memory", tail or "killed by the kernel")
        if code in (-signal.SIGXCPU, -signal.SIGXFSZ):
            return ChildDied("limit", "CPU time or file size limit reached")
        name = signal.Signals(-code).name if code is not None and code < 0 else f"exit code {code}"
        return ChildDied("crashed", f"{name}: {tail}".strip(": "))

    def _tail(self) -> str:
        """Return the log's last lines, through the open file: the child may have put anything under its name."""
        log = self._errors.fileno()
        start = max(0, os.fstat(log).st_size - TAIL_BYTES)
        lines = os.pread(log, TAIL_BYTES, start).decode(errors="replace").strip().splitlines()
        return " | ".join(lines[-3:])[-500:]

    def _environment(self) -> dict[str, str]:
        """Return the environment without secrets; the project's own folder is importable."""
        kept = {name: os.environ[name] for name in KEPT_ENVIRONMENT if name in os.environ}
        threads = str(self.limits.threads)
        root = str(Path(__file__).resolve().parents[1])
        return {
            **kept,
            "PYTHONPATH": os.pathsep.join(filter(None, [root, kept.get("PYTHONPATH", "")])),
            "HOME": str(self.folder),
            "TMPDIR": str(self.folder),
            "OMP_NUM_THREADS": threads,
            "OPENBLAS_NUM_THREADS": threads,
            "MKL_NUM_THREADS": threads,
            "ORT_DISABLE_TELEMETRY": "1",
            "PYTHONDONTWRITEBYTECODE": "1",
            **KEPT_MEMORY,
        }


def _is_reply(reply: object, number: int) -> bool:
    """Tell whether a decoded line answers request `number`: a subverted child may send anything."""
    if not isinstance(reply, dict) or reply.get("id") != number:
        return False
    if "error" not in reply:
        return "result" in reply
    error = reply["error"]
    if not isinstance(error, dict) or not isinstance(error.get("detail"), str):
        return False
    refused = error.get("kind") == "refused"
    return isinstance(error.get("slug" if refused else "kind"), str) and isinstance(error.get("errors", []), list)

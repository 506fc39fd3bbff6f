"""The real child with extra methods that misbehave on purpose: `python -m tests.worker.hostile_child LIMITS`."""

from __future__ import annotations

import ctypes
import os
import resource
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

from worker import child
from worker.child import Params, Session


def environment(session: Session, params: Params) -> Params:
    """Tell what the child sees of the outside: environment, folder, process group, open descriptors."""
    return {
        "environment": dict(os.environ),
        "folder": str(Path.cwd()),
        "group": os.getpgrp(),
        "descriptors": {
            link.name: str(link.readlink()) for link in Path("/proc/self/fd").iterdir() if link.is_symlink()
        },
        "core": list(resource.getrlimit(resource.RLIMIT_CORE)),
        "files": list(resource.getrlimit(resource.RLIMIT_NOFILE)),
    }


def allocate(session: Session, params: Params) -> Params:
    """Take memory as Python does."""
    return {"length": len(bytearray(params["bytes"]))}


def allocate_tensor(session: Session, params: Params) -> Params:
    """Take memory as torch does."""
    import torch

    return {"length": torch.ones(params["bytes"], dtype=torch.uint8).numel()}


def segfault(session: Session, params: Params) -> Params:
    """Read address zero."""
    return {"value": ctypes.string_at(0)}


def kill_self(session: Session, params: Params) -> Params:
    """Die as the kernel's out-of-memory killer lets one die."""
    os.kill(os.getpid(), 9)
    return {}


def leave(session: Session, params: Params) -> Params:
    """End without an answer."""
    os._exit(params["code"])


def spin(session: Session, params: Params) -> Params:
    """Burn CPU for ever."""
    while True:
        pass


def sleep(session: Session, params: Params) -> Params:
    """Answer late."""
    time.sleep(params["seconds"])
    return {"slept": params["seconds"]}


def grandchild(session: Session, params: Params) -> Params:
    """Start a process of its own and report its id."""
    return {"pid": subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"]).pid}


def fork_bomb(session: Session, params: Params) -> Params:
    """Double again and again, in every way there is; whoever is born sleeps."""
    started: list[int] = []
    for start in (os.fork, lambda: subprocess.Popen(["sleep", "60"]).pid, lambda: ctypes.CDLL(None).fork()):
        for _ in range(params["count"]):
            try:
                pid = start()
            except OSError:
                continue
            if pid == 0:
                time.sleep(60)
                os._exit(0)
            if pid > 0:
                started.append(pid)
    os.fork()
    return {"started": started}


def threads(session: Session, params: Params) -> Params:
    """Start threads, which are no processes."""
    done: list[int] = []
    workers = [threading.Thread(target=done.append, args=(number,)) for number in range(params["count"])]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    return {"done": len(done)}


def big_reply(session: Session, params: Params) -> Params:
    """Answer with more than the pipe's cap."""
    return {"text": "x" * params["bytes"]}


def chatter(session: Session, params: Params) -> Params:
    """Print to standard output in every way a library may."""
    print('{"id": 1, "result": "forged"}', flush=True)
    os.write(1, b"raw noise\n")
    return {"said": True}


def fill_file(session: Session, params: Params) -> Params:
    """Write a file larger than allowed."""
    with Path("big.bin").open("wb") as stream:
        for _ in range(params["mebibytes"]):
            stream.write(bytes(1 << 20))
            stream.flush()
    return {}


def open_files(session: Session, params: Params) -> Params:
    """Open more files than allowed."""
    held = [open(os.devnull, "rb") for _ in range(params["count"])]  # noqa: SIM115, PTH123
    return {"held": len(held)}


def log(session: Session, params: Params) -> Params:
    """Write a lot to standard error, then crash."""
    line = b"z" * 1023 + b"\n"
    for _ in range(params["kibibytes"]):
        os.write(2, line)
    os.write(2, b"the last words\n")
    os.abort()
    return {}


def swap_log(session: Session, params: Params) -> Params:
    """Put a link to a file of the parent's in place of the log, then crash."""
    Path("stderr.txt").unlink()
    Path("stderr.txt").symlink_to(params["target"])
    os.abort()
    return {}


def not_a_number(session: Session, params: Params) -> Params:
    """Answer with a number that JSON does not have."""
    return {"value": float("nan")}


HOSTILE: dict[str, Any] = {
    function.__name__: function
    for function in (
        environment, allocate, allocate_tensor, segfault, kill_self, leave, spin, sleep, grandchild, fork_bomb,
        threads, big_reply, chatter, fill_file, open_files, log, swap_log, not_a_number,
    )
}  # fmt: skip

if __name__ == "__main__":
    child.METHODS.update(HOSTILE)
    child.main()

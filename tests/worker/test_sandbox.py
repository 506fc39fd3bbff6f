"""The sandbox: however the child dies or lies, the parent lives, knows why, and leaves nothing behind."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from worker import sandbox
from worker.sandbox import Child, ChildDied, ChildRefused, Limits

HOSTILE = "tests.worker.hostile_child"
PARROT = "tests.worker.parrot_child"
START_S = 60.0  # torch's import takes 2 s on an idle machine


@pytest.fixture
def child() -> Iterator[Child]:
    with Child(module=HOSTILE) as process:
        yield process


@pytest.fixture(scope="module")
def seen() -> Iterator[dict[str, Any]]:
    """What a child sees when the worker's environment holds secrets and an open file."""
    secrets = {"TIGHTFIT_DATABASE_URL": "postgresql://user:secret@db/x", "AWS_SECRET_ACCESS_KEY": "s3cret"}
    with pytest.MonkeyPatch.context() as patch, Path(__file__).open("rb") as held:
        for name, value in secrets.items():
            patch.setenv(name, value)
        os.set_inheritable(held.fileno(), True)
        with Child(Limits(threads=1, files=128), HOSTILE) as process:
            report: dict[str, Any] = process.call("environment", {}, START_S)
            yield {**report, "child": process.pid, "private": str(process.folder)}


def died(process: Child, method: str, params: dict[str, Any], timeout_s: float = START_S) -> ChildDied:
    """Call a method that must end the child; nothing of it may be left."""
    with pytest.raises(ChildDied) as caught:
        process.call(method, params, timeout_s)
    assert not process.alive
    assert not process.folder.exists()
    return caught.value


def is_running(pid: int) -> bool:
    """Tell whether a process exists and is no zombie."""
    with suppress(FileNotFoundError, ProcessLookupError):
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    return False


def ended(pid: int, within_s: float) -> bool:
    """Wait for a process to end."""
    deadline = time.monotonic() + within_s
    while is_running(pid) and time.monotonic() < deadline:
        time.sleep(0.05)
    return not is_running(pid)


def test_environment_when_the_worker_holds_secrets_then_none_reaches_the_child(seen: dict[str, Any]) -> None:
    text = " ".join(f"{name}={value}" for name, value in seen["environment"].items())
    assert "secret" not in text and "s3cret" not in text
    assert not [name for name in seen["environment"] if name.startswith(("TIGHTFIT_", "AWS_"))]
    assert seen["environment"]["OMP_NUM_THREADS"] == "1"
    assert seen["environment"]["ORT_DISABLE_TELEMETRY"] == "1"


def test_environment_when_started_then_the_allocator_keeps_large_blocks(seen: dict[str, Any]) -> None:
    assert seen["environment"]["MALLOC_MMAP_MAX_"] == "0"
    assert int(seen["environment"]["MALLOC_TRIM_THRESHOLD_"]) > Limits().memory_bytes


def test_environment_when_started_then_own_folder_group_and_limits(seen: dict[str, Any]) -> None:
    assert seen["folder"] == seen["private"] == seen["environment"]["HOME"] == seen["environment"]["TMPDIR"]
    assert seen["group"] == seen["child"] != os.getpgrp()
    assert seen["core"] == [0, 0]
    assert seen["files"] == [128, 128]


def test_descriptors_when_the_worker_holds_open_files_then_the_child_has_none_of_them(seen: dict[str, Any]) -> None:
    assert not [link for link in seen["descriptors"].values() if link.endswith((Path(__file__).name, ".db"))]


def test_call_when_it_answers_then_the_same_process_serves_the_next_call(child: Child) -> None:
    first = child.call("environment", {}, START_S)
    again = child.call("environment", {}, START_S)
    assert first["group"] == again["group"] == child.pid


def test_call_when_a_library_prints_to_stdout_then_the_answer_is_still_the_answer(child: Child) -> None:
    assert child.call("chatter", {}, START_S) == {"said": True}
    assert child.call("ping", {}, START_S) == {"pong": True}


def test_call_when_refused_then_the_child_lives_on(child: Child) -> None:
    with pytest.raises(ChildRefused) as caught:
        child.call("evaluate", {"items": [{}]}, START_S)
    assert caught.value.slug == "invalid-request"
    assert child.call("ping", {}, START_S) == {"pong": True}


@pytest.mark.fault(77)
@pytest.mark.parametrize("method", ["allocate", "allocate_tensor"])
def test_call_when_memory_runs_out_then_out_of_memory(method: str) -> None:
    process = Child(Limits(memory_bytes=4 << 30), HOSTILE)
    assert died(process, method, {"bytes": 6 << 30}).kind == "out-of-memory"


def test_call_when_killed_by_the_kernel_then_out_of_memory(child: Child) -> None:
    assert died(child, "kill_self", {}).kind == "out-of-memory"


@pytest.mark.fault(77)
def test_call_when_the_child_segfaults_then_crashed_with_the_signal(child: Child) -> None:
    death = died(child, "segfault", {})
    assert (death.kind, "SIGSEGV" in death.detail) == ("crashed", True)


def test_call_when_the_child_exits_then_crashed_with_the_code(child: Child) -> None:
    death = died(child, "leave", {"code": 7})
    assert (death.kind, "exit code 7" in death.detail) == ("crashed", True)


@pytest.mark.fault(77)
def test_call_when_the_deadline_passes_then_timed_out_and_soon(child: Child) -> None:
    child.call("ping", {}, START_S)
    start = time.monotonic()
    assert died(child, "spin", {}, timeout_s=0.6).kind == "timed-out"
    assert time.monotonic() - start < 2.0


def test_call_when_cancelled_then_killed_within_a_second(child: Child) -> None:
    child.call("ping", {}, START_S)
    start = time.monotonic()
    with pytest.raises(ChildDied) as caught:
        child.call("spin", {}, START_S, cancelled=lambda: time.monotonic() - start > 0.3)
    assert caught.value.kind == "cancelled"
    assert time.monotonic() - start < 1.5
    assert not child.alive


def test_call_when_cpu_time_is_spent_then_limit() -> None:
    process = Child(Limits(cpu_s=4), HOSTILE)
    assert died(process, "spin", {}).kind == "limit"


@pytest.mark.fault(77)
def test_call_when_a_file_grows_too_large_then_limit() -> None:
    process = Child(Limits(file_bytes=4 << 20), HOSTILE)
    assert died(process, "fill_file", {"mebibytes": 8}).kind == "limit"


def test_call_when_too_many_files_are_opened_then_limit() -> None:
    process = Child(Limits(files=128), HOSTILE)
    assert died(process, "open_files", {"count": 200}).kind == "limit"


def test_call_when_the_answer_is_larger_than_the_cap_then_limit(child: Child, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sandbox, "MAX_REPLY", 1 << 20)
    assert len(child.call("big_reply", {"bytes": 1000_000}, START_S)["text"]) == 1000_000
    assert died(child, "big_reply", {"bytes": 2 << 20}).kind == "limit"


@pytest.mark.parametrize(
    "text",
    ["not json\n", "[1, 2]\n", "null\n", '{"id": 1}\n', '{"id": 1, "error": 5}\n', '{"id": 99, "result": {}}\n',
     "[" * 100_000 + "\n", '{"id": 1, "error": {"kind": "refused"}}\n'],
    ids=["text", "list", "null", "empty", "bare-error", "other-id", "nested", "half-refusal"],
)  # fmt: skip
def test_call_when_the_answer_is_no_answer_then_crashed(text: str) -> None:
    process = Child(module=PARROT)
    assert died(process, "say", {"text": text}).kind == "crashed"


def test_call_when_a_line_is_never_ended_then_timed_out() -> None:
    process = Child(module=PARROT)
    assert died(process, "say", {"text": '{"id": 1, "result": '}, timeout_s=1.0).kind == "timed-out"


def test_call_when_a_number_is_not_json_then_crashed_not_passed_on(child: Child) -> None:
    assert died(child, "not_a_number", {}).kind == "crashed"


def test_call_when_the_child_is_gone_then_died_again_not_another_error(child: Child) -> None:
    died(child, "leave", {"code": 1})
    with pytest.raises(ChildDied):
        child.call("ping", {}, START_S)


def members(group: int) -> list[int]:
    """Return the processes of a process group."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if int((folder / "stat").read_text().rsplit(")", 1)[1].split()[2]) == group:
                found.append(int(folder.name))
    return found


@pytest.mark.fault(77)
def test_call_when_the_child_is_a_fork_bomb_then_no_process_starts_and_that_is_a_limit(child: Child) -> None:
    seen: list[list[int]] = []
    with pytest.raises(ChildDied) as caught:
        child.call("fork_bomb", {"count": 50}, START_S, lambda: bool(seen.append(members(child.pid))))
    assert caught.value.kind == "limit"
    assert set().union(*seen) <= {child.pid}
    assert ended(child.pid, within_s=2.0)


def test_call_when_it_starts_threads_then_they_run(child: Child) -> None:
    assert child.call("threads", {"count": 20}, START_S) == {"done": 20}


@pytest.mark.fault(77)
def test_close_when_a_grandchild_runs_then_it_ends_too() -> None:
    with Child(Limits(alone=False), HOSTILE) as child:
        pid = child.call("grandchild", {}, START_S)["pid"]
        assert is_running(pid)
    assert ended(pid, within_s=2.0)


def test_close_when_called_twice_then_the_second_signals_nobody(child: Child, monkeypatch: pytest.MonkeyPatch) -> None:
    child.close()
    signalled: list[int] = []
    monkeypatch.setattr(os, "killpg", lambda group, _: signalled.append(group))
    child.close()
    assert signalled == []  # the number may belong to a stranger by now


def test_death_when_the_log_is_long_then_only_its_end_is_reported(child: Child) -> None:
    death = died(child, "log", {"kibibytes": 2048})
    assert death.kind == "crashed"
    assert len(death.detail) < 700


def test_death_when_the_log_is_swapped_for_a_link_then_the_target_is_not_read(child: Child, tmp_path: Path) -> None:
    secret = tmp_path / "secret.txt"
    secret.write_text("the database password")
    death = died(child, "swap_log", {"target": str(secret)})
    assert death.kind == "crashed"
    assert "password" not in death.detail


def test_child_when_its_worker_is_killed_then_it_does_not_compute_on() -> None:
    script = (
        "from worker.sandbox import Child\n"
        f"process = Child(module={HOSTILE!r})\n"
        "process.call('ping', {}, 60)\n"
        "print(process.pid, process.folder, flush=True)\n"
        "process.call('spin', {}, 600)\n"
    )
    root = Path(__file__).resolve().parents[2]
    worker = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, cwd=root, text=True)
    assert worker.stdout is not None
    pid, folder = worker.stdout.readline().split()
    time.sleep(0.5)
    worker.kill()
    worker.wait()
    worker.stdout.close()
    try:
        assert ended(int(pid), within_s=5.0)
        assert not Path(folder).exists()
    finally:
        with suppress(ProcessLookupError):
            os.killpg(int(pid), 9)

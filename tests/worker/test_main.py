"""Who is silent, by the watcher's own clock."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from worker.__main__ import NICE, Silence

ROOT = Path(__file__).resolve().parents[2]
NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)


@pytest.mark.fault(83)
@pytest.mark.parametrize("jump", [timedelta(hours=1), timedelta(hours=-1)])
def test_silence_when_a_clock_jumps_by_an_hour_then_nobody_is_silent(jump: timedelta) -> None:
    silence = Silence(30.0)
    for beat in range(20):
        sign = NOON + timedelta(seconds=5 * beat) + (jump if beat >= 10 else timedelta())
        assert silence.of({"w1": sign, "w2": sign}, 5.0 * beat) == []


def test_silence_when_a_sign_stays_the_same_then_silent_after_the_time_and_back_with_a_new_one() -> None:
    silence = Silence(30.0)
    assert silence.of({"w1": NOON}, 0.0) == []
    assert silence.of({"w1": NOON}, 30.0) == []
    assert silence.of({"w1": NOON}, 30.1) == ["w1"]
    assert silence.of({"w1": NOON + timedelta(seconds=1)}, 31.0) == []


def test_silence_when_a_worker_never_gave_a_sign_then_silent_after_the_time() -> None:
    silence = Silence(30.0)
    assert silence.of({"unknown": None}, 0.0) == []
    assert silence.of({"unknown": None}, 31.0) == ["unknown"]


def test_silence_when_a_worker_left_then_it_is_forgotten() -> None:
    silence = Silence(30.0)
    silence.of({"w1": NOON}, 0.0)
    assert silence.of({}, 40.0) == []
    assert silence.of({"w1": NOON}, 50.0) == []


@pytest.mark.timeout(90)
def test_worker_when_a_service_started_it_then_it_gives_way_to_that(tmp_path: Path) -> None:
    environment = {**os.environ, "TIGHTFIT_DATA_DIR": str(tmp_path), "TIGHTFIT_DATABASE_URL": ""}
    command = [sys.executable, "-m", "worker", "--executor-id", "w0"]
    workers = [subprocess.Popen([*command, *more], cwd=ROOT, env=environment) for more in ([], ["--supervised"])]
    mine = os.getpriority(os.PRIO_PROCESS, 0)
    try:
        file, deadline = tmp_path / "app.db.lock", time.monotonic() + 60
        while not file.exists() and time.monotonic() < deadline:  # made once the options are read
            time.sleep(0.1)
        time.sleep(1.0)
        found = [os.getpriority(os.PRIO_PROCESS, worker.pid) - mine for worker in workers]
        assert found == [0, min(NICE, 19 - mine)]
    finally:
        for worker in workers:
            worker.kill()
            worker.wait()

"""Who is silent, by the watcher's own clock."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from worker.__main__ import Silence

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

"""How often what failed is tried again, and what the log tells of a trial."""

from __future__ import annotations

import logging
from typing import Any

import pytest

from worker.trials import logged, tried

DONE: dict[str, Any] = {"measurement": {"metrics": {}}}


def failing(kind: str) -> dict[str, Any]:
    return {"failure": {"kind": kind, "detail": "d"}}


@pytest.mark.fault(77)
@pytest.mark.parametrize(
    ("results", "times", "expected"),
    [
        (["out-of-memory", None], 3, 2),
        (["crashed", "out-of-memory", None], 3, 3),
        (["crashed", "crashed", "crashed", None], 3, 3),
        (["timed-out", None], 3, 1),  # as long again, and again: no
        ([None], 3, 1),
        (["crashed", None], 1, 1),
    ],
)
def test_tried_when_killed_then_repeated_up_to_so_many_times(
    results: list[str | None], times: int, expected: int
) -> None:
    given = [DONE if kind is None else failing(kind) for kind in results]
    calls = iter(given)
    assert tried(lambda: next(calls), times) == given[expected - 1]
    assert len(list(calls)) == len(given) - expected


def test_logged_when_a_trial_ended_then_tells_how_long_it_was_measured_and_chosen(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with caplog.at_level(logging.INFO, "tightfit.worker"):
        logged({**DONE, "seconds": 0.12345}, 0.0456)
        logged({**failing("crashed"), "seconds": 1.0}, 0.0)
    done, failed = (record.__dict__ for record in caplog.records)
    assert (done["msg"], done["seconds"], done["planned_s"]) == ("trial done", 0.123, 0.046)
    assert (failed["msg"], failed["class"], failed["levelname"]) == ("trial failed", "crashed", "WARNING")

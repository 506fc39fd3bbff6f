"""How often what failed is tried again."""

from __future__ import annotations

from typing import Any

import pytest

from worker.trials import tried

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

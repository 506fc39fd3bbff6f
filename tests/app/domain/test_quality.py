"""A quality to keep: the higher of floor and allowed drop."""

from __future__ import annotations

from typing import Any

import pytest

from app.domain.quality import Quality, misbound, quality_of


@pytest.mark.parametrize(
    ("asked", "floor"),
    [({"min": 0.7}, 0.7), ({"max_drop": 0.1}, 0.65), ({"min": 0.7, "max_drop": 0.1}, 0.7), ({"max_drop": 0.0}, 0.75)],
)
def test_floor_when_asked_for_one_or_both_then_the_higher(asked: dict[str, float], floor: float) -> None:
    quality = quality_of({"quality": {"metric": "accuracy", **asked}})
    assert quality is not None
    assert quality.floor({"accuracy": 0.75}) == pytest.approx(floor)


def test_judged_when_exactly_at_the_floor_then_met() -> None:
    quality = Quality("agreement", min=0.9)
    assert quality.judged({"agreement": 0.9}, {}) == {"metric": "agreement", "floor": 0.9, "value": 0.9, "met": True}
    assert not quality.judged({"agreement": 0.89}, {})["met"]


def test_quality_when_not_asked_for_then_none() -> None:
    assert quality_of({}) is None
    assert quality_of({"quality": None}) is None


def test_judged_when_lower_is_better_then_against_the_ceiling() -> None:
    quality = quality_of({"quality": {"metric": "kl", "max": 0.1}})
    assert quality is not None
    assert quality.judged({"kl": 0.1}, {}) == {"metric": "kl", "ceiling": 0.1, "value": 0.1, "met": True}
    assert not quality.judged({"kl": 0.11}, {})["met"]


@pytest.mark.parametrize(
    ("asked", "told"),
    [
        ({"metric": "accuracy", "min": 0.9, "max_drop": 0.1}, None),
        ({"metric": "mse", "max": 0.1}, None),
        ({"metric": "miou", "max": 0.1}, "max can't bound miou: higher is better, so give min or max_drop"),
        ({"metric": "kl", "max_drop": 0.0}, "max_drop can't bound kl: lower is better, so give max"),
    ],
)
def test_misbound_when_a_bound_is_on_the_wrong_side_then_says_which_is_right(
    asked: dict[str, Any], told: str | None
) -> None:
    assert misbound(asked) == told

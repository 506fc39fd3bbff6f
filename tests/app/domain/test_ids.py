"""Identifiers."""

from __future__ import annotations

import time

import pytest

from app.domain.ids import PREFIXES, is_id, new_id


@pytest.mark.parametrize("noun", sorted(PREFIXES))
def test_id_when_made_then_prefix_and_26_digits(noun: str) -> None:
    made = new_id(noun)
    assert made.startswith(PREFIXES[noun] + "_")
    assert len(made) == 30
    assert is_id(made, noun)


def test_ids_when_made_later_then_sort_later_and_never_collide() -> None:
    made = []
    for _ in range(5):
        made.append(new_id("trial"))
        time.sleep(0.002)
    assert made == sorted(made)
    assert len({new_id("model") for _ in range(2000)}) == 2000


@pytest.mark.parametrize(
    "text",
    ["", "mdl_", "trl_" + "0" * 26, "mdl_" + "0" * 25, "mdl_" + "u" * 26, "mdl_" + "0" * 26 + "\n", "MDL_" + "0" * 26],
)
def test_is_id_when_the_text_is_not_one_then_false(text: str) -> None:
    assert not is_id(text, "model")

"""Rules for layers by name, given in the form of a new search, in a real browser."""

from __future__ import annotations

from typing import Any

import pytest

from tests.e2e.forms import opened, refused, started
from tests.e2e.test_dashboard import shoot

pytestmark = pytest.mark.e2e


def add_rule(page: Any, pattern: str, rule: str, allowed: str = "") -> None:
    """Fill one more row."""
    page.get_by_role("button", name="Add a rule").click()
    row = page.locator(".rules > div").last
    row.get_by_label("Pattern").fill(pattern)
    row.get_by_label("Rule", exact=True).select_option(label=rule)
    if allowed:
        row.get_by_label("Allowed").fill(allowed)


def rows(page: Any) -> set[tuple[str, str, str]]:
    """Return what the rows say."""
    return {
        (
            row.get_by_label("Pattern").input_value(),
            row.get_by_label("Rule", exact=True).input_value(),
            row.get_by_label("Allowed").input_value(),
        )
        for row in page.locator(".rules > div").all()
    }


def test_new_search_when_layers_have_rules_then_asked_for_kept_and_shown_again(
    watched: Any, search: Any, service: Any
) -> None:
    page = watched.page
    layers = service.client.get(f"/v1/models/{search['model_id']}")["graph"]["layers"]
    first, last = layers[0]["name"], layers[-1]["name"]
    opened(page, service, trials=4)
    page.locator("#names option").nth(len(layers) - 1).wait_for(state="attached")
    add_rule(page, first, "keep all channels")
    add_rule(page, "*", "only these weight bits", "4, 8")
    add_rule(page, "*", "only these activation bits", "8")
    add_rule(page, last, "exactly these bits: weight, activation", "8 8")
    add_rule(page, "*", "keep at least this share", "0.25")
    page.get_by_label("First and last layer").select_option("8")
    shoot(page, "rules")
    made = service.client.get(f"/v1/searches/{started(page)}")
    space = made["request"]["space"]
    assert space["freeze"] == [first]
    assert space["bits"] == {"*": {"weight": [4, 8], "activation": [8]}}
    assert space["fixed_bits"] == {last: [8, 8]}
    assert (space["min_keeps"], space["max_keeps"], space["first_last"]) == ({"*": 0.25}, {}, 8)
    page.goto(f"{service.url}/searches/new?like={made['id']}")
    page.locator(".rules > div").nth(4).wait_for()
    assert rows(page) == {
        (first, "freeze", ""), ("*", "weight", "4 8"), ("*", "activation", "8"), (last, "fixed_bits", "8 8"),
        ("*", "min_keeps", "0.25"),
    }  # fmt: skip
    assert page.get_by_label("First and last layer").input_value() == "8"
    service.client.wait_search(made["id"])


def test_new_search_when_a_rule_fits_no_layer_then_the_form_says_which(watched: Any, search: Any, service: Any) -> None:
    page = watched.page
    opened(page, service)
    add_rule(page, "no_such_layer", "keep all channels")
    assert "'no_such_layer' fits no layer" in refused(watched)

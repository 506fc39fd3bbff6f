"""Methods, exports and the choice of no data in the form of a new search, in a real browser."""

from __future__ import annotations

from typing import Any

import pytest

from tests.e2e.forms import opened, refused, started
from tests.e2e.test_dashboard import shoot

pytestmark = pytest.mark.e2e


def add_method(page: Any, name: str, parameters: str = "") -> None:
    """Fill one more row."""
    page.get_by_role("button", name="Add a method").click()
    row = page.locator(".methods > div").last
    row.get_by_label("Method", exact=True).select_option(name)
    row.get_by_label("Parameters").fill(parameters)


def rows(page: Any) -> list[tuple[str, str]]:
    """Return what the rows say."""
    found = page.locator(".methods > div").all()
    labels = ("Method", "Parameters")
    return [tuple(row.get_by_label(label, exact=True).input_value() for label in labels) for row in found]


def test_new_search_when_methods_and_an_opset_are_chosen_then_asked_for_applied_and_shown_again(
    watched: Any, search: Any, service: Any
) -> None:
    page = watched.page
    opened(page, service, trials=4)
    add_method(page, "bias-correction", "mode=local")
    add_method(page, "straight-through", "epochs=1, rows=64, rate=1e-4")
    page.get_by_label("ONNX opset").select_option("17")
    shoot(page, "methods")
    made = service.client.wait_search(started(page))
    first, second = made["request"]["methods"]
    assert (first["name"], first["mode"]) == ("bias-correction", "local")
    assert [second["training"][key] for key in ("epochs", "rows", "rate")] == [1, 64, 1e-4]
    assert made["request"]["export"] == {"opset": 17}
    assert made["state"] == "completed"
    page.goto(f"{service.url}/searches/new?like={made['id']}")
    page.locator(".methods > div").nth(1).wait_for()
    (name, parameters), (other, training) = rows(page)
    assert (name, other) == ("bias-correction", "straight-through")
    assert "mode=local" in parameters and "epochs=1" in training and "rate=0.0001" in training
    assert page.get_by_label("ONNX opset").input_value() == "17"


def test_new_search_when_a_method_lacks_a_parameter_then_the_form_says_which(
    watched: Any, search: Any, service: Any
) -> None:
    page = watched.page
    opened(page, service)
    add_method(page, "bias-correction", "epochs=3")
    assert "epochs" in refused(watched)


def test_new_search_when_there_are_no_data_then_searched_on_drawn_inputs(
    watched: Any, search: Any, service: Any
) -> None:
    page = watched.page
    opened(page, service, trials=3)
    page.get_by_label("Dataset").select_option("none")
    made = service.client.wait_search(started(page))
    assert (made["request"]["dataset"], made["state"]) == (None, "completed")
    page.goto(f"{service.url}/searches/new?like={made['id']}")
    assert page.get_by_label("Dataset").input_value() == "none"

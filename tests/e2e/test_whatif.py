"""What if the limits were others: asked in a real browser, beside what the service answers; and a search from there."""

from __future__ import annotations

import json
from typing import Any

import pytest

from app.domain.words import amount, percent
from tests.e2e.test_dashboard import shoot

pytestmark = pytest.mark.e2e


def answer(page: Any) -> dict[str, list[str]]:
    """Return the answer's table: cells by the head of their row."""
    rows = [
        [cell.strip() for cell in row.locator("th, td").all_inner_texts()] for row in page.locator("#whatif tr").all()
    ]
    return {row[0]: row[1:] for row in rows}


def opened(watched: Any, service: Any, search: Any) -> Any:
    """Open a search's page; return it once the panel shows its first answer."""
    page = watched.page
    page.goto(f"{service.url}/searches/{search['id']}")
    page.locator("#whatif td").first.wait_for()
    return page


def test_whatif_when_a_limit_is_typed_then_the_services_answer_beside_the_best(
    watched: Any, search: Any, service: Any
) -> None:
    page = opened(watched, service, search)
    assert float(page.get_by_label("BOPs at most").input_value()) == search["budget"]["limits"]["bops"]
    limit = search["budget"]["limits"]["bops"] * 0.6
    page.get_by_label("BOPs at most").fill(f"{limit:.0f}")
    page.wait_for_url(lambda url: f"bops%3A{limit:.0f}" in url)
    asked = [{"metric": "bops", "max": round(limit)}, {"metric": "weight_bytes", "max": 60_000}]
    known = service.client.post(f"/v1/searches/{search['id']}/whatif", {"limits": asked})
    best = service.client.post(f"/v1/searches/{search['id']}/whatif", {"limits": [
        {"metric": name, "max": value} for name, value in search["budget"]["limits"].items()
    ]})["measured"]  # fmt: skip
    shown = answer(page)
    heads = shown[""]
    assert heads[:3] == ["best in the search's budget", "measured", "predicted"]
    predicted = heads.index("predicted")
    assert shown["BOPs"][0] == amount("bops", best["costs"]["bops"])
    assert shown["Accuracy"][0] == percent(best["metrics"]["accuracy"])
    assert shown["BOPs"][predicted] == amount("bops", known["predicted"]["costs"]["bops"])
    assert shown["Accuracy"][predicted] == percent(known["predicted"]["accuracy"])
    assert shown["Weight bytes"][predicted] == amount("weight_bytes", known["predicted"]["costs"]["weight_bytes"])
    page.reload()
    page.locator("#whatif td").first.wait_for()
    assert answer(page) == shown
    shoot(page, "whatif")


def test_whatif_when_the_slider_is_moved_by_keys_then_it_asks_and_tells_its_value(
    watched: Any, search: Any, service: Any
) -> None:
    page = opened(watched, service, search)
    slider = page.get_by_label("BOPs, slider")
    slider.focus()
    page.keyboard.press("Home")
    page.locator("#whatif .says", has_text="inside these limits").wait_for()
    low = float(page.get_by_label("BOPs at most").input_value())
    assert slider.get_attribute("aria-valuetext") == amount("bops", low)
    page.get_by_label("BOPs at most").fill(str(low / 3))
    page.locator("#whatif .says", has_text="No network of this search's space can keep BOPs").wait_for()
    page.get_by_label("BOPs at most").fill("much")
    page.locator("#whatif [role=alert]").wait_for()
    assert "greater than zero" in page.locator("#whatif [role=alert]").inner_text()


def test_search_here_when_pressed_then_the_form_is_filled_in_and_starts_that_search(
    watched: Any, search: Any, service: Any
) -> None:
    page = opened(watched, service, search)
    limit = round(search["budget"]["limits"]["bops"] * 0.8)
    page.get_by_label("BOPs at most").fill(str(limit))
    page.wait_for_url(lambda url: f"bops%3A{limit}" in url)
    page.get_by_role("link", name="Search here").click()
    page.wait_for_url("**/searches/new?like=*")
    assert page.get_by_label("Name").input_value() == "e2e, other limits"
    assert page.get_by_label("Trials").input_value() == "12"
    assert page.get_by_label("Device").locator("option:checked").inner_text() == "generic-npu"
    shown = [box.input_value() for box in page.locator(".limits input").all()]
    assert shown == [str(limit), "60000"]
    shoot(page, "search-here")
    page.get_by_label("Trials").fill("4")
    page.get_by_role("button", name="Start the search").click()
    page.wait_for_url("**/searches/srh_*")
    made = service.client.get(f"/v1/searches/{page.url.rpartition('/')[2].partition('?')[0]}")
    asked = {item["metric"]: item["max"] for item in made["request"]["limits"]}
    assert asked == {"bops": limit, "weight_bytes": 60_000}
    assert (made["model_id"], made["request"]["search"]["trials"]) == (search["model_id"], 4)
    assert json.dumps(made["request"]["dataset"]) == json.dumps(search["request"]["dataset"])
    service.client.wait_search(made["id"])


@pytest.mark.parametrize("watched", [{"viewport": {"width": 400, "height": 800}}], indirect=True)
def test_whatif_when_the_screen_is_narrow_then_the_page_never_scrolls_sideways(
    watched: Any, search: Any, service: Any
) -> None:
    page = opened(watched, service, search)
    assert page.evaluate("document.documentElement.scrollWidth") <= 400
    shoot(page, "whatif-narrow")

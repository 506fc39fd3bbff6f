"""A fleet in a real browser: from the list to each device's search, followed to its end."""

from __future__ import annotations

from typing import Any

import pytest

from app.domain.words import percent
from tests.e2e.test_dashboard import OUTSIDE_CHARTS, shoot

pytestmark = pytest.mark.e2e


@pytest.fixture(scope="module")
def fleet(search: Any, service: Any) -> Any:
    """A fleet of two devices, just begun."""
    limits = [{"metric": "bops", "relative": 0.25}]
    members = [{"device_id": name, "limits": limits} for name in ("generic-npu", "coral-edgetpu")]
    members[1]["limits"] = [{"metric": "weight_bytes", "relative": 0.8}]
    return service.client.post(
        "/v1/fleets",
        {
            "name": "boards", "model_id": search["model_id"], "dataset": search["request"]["dataset"],
            "members": members, "search": {"trials": 6, "seed": 1}, "export_top": 0,
        },
    )  # fmt: skip


def rows(page: Any) -> list[list[str]]:
    found = page.locator("tbody tr").all()
    return [[cell.strip() for cell in row.locator("td").all_inner_texts()] for row in found]


def test_fleet_when_followed_then_every_device_ends_with_progress_and_its_best(
    watched: Any, fleet: Any, service: Any
) -> None:
    page = watched.page
    page.goto(f"{service.url}/searches")
    page.get_by_role("link", name="Fleets").click()
    page.wait_for_url("**/fleets")
    page.get_by_role("link", name="boards").click()
    page.wait_for_url(f"**/fleets/{fleet['id']}")
    assert page.locator("h1").inner_text() == "boards"
    page.locator(".head .chip", has_text="completed").wait_for(timeout=240_000)
    done = service.client.get(f"/v1/fleets/{fleet['id']}")["members"]
    shown = rows(page)
    assert [row[0].partition("@")[0] for row in shown] == ["generic-npu", "coral-edgetpu"]
    for row, member in zip(shown, done, strict=True):
        assert row[2] == member["state"] == "completed"
        assert f"{member['progress']['done']}/{member['progress']['total']}" in row[4]
        assert row[5] == str(member["evaluations"])
        assert row[6] == percent(member["best"]["metrics"]["accuracy"])
    assert page.get_by_role("button", name="Cancel").count() == 0
    assert page.locator(f"[style]{OUTSIDE_CHARTS}").count() == 0
    shoot(page, "fleet")
    page.get_by_role("link", name="boards: coral-edgetpu").click()
    page.wait_for_url(f"**/searches/{done[1]['search_id']}")
    page.goto(f"{service.url}/fleets")
    assert "2 of 2 searches ended" in rows(page)[0][2]
    shoot(page, "fleets")


@pytest.mark.parametrize("watched", [{"viewport": {"width": 400, "height": 800}}], indirect=True)
def test_fleet_pages_when_the_screen_is_narrow_then_never_scroll_sideways(
    watched: Any, fleet: Any, service: Any
) -> None:
    page = watched.page
    for path in ("/fleets", f"/fleets/{fleet['id']}"):
        page.goto(service.url + path)
        assert page.locator("h1").count() == 1
        assert page.evaluate("document.documentElement.scrollWidth") <= 400, path

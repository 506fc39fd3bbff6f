"""A device's page in a real browser: a calibration that runs, and what was timed beside what was predicted."""

from __future__ import annotations

from typing import Any

import pytest

from app.domain.demand import Timing
from app.store import tables, timings
from app.store.engine import connect
from tests.e2e.test_dashboard import shoot

pytestmark = pytest.mark.e2e
NAME, PAIRS = "onnxruntime-cpu-e2e", 8


@pytest.fixture(scope="module")
def device(search: Any, service: Any) -> Any:
    """A profile of the host on which the search's files took half as long again as it says."""
    profile = service.client.get("/v1/devices/onnxruntime-cpu")["profile"]
    made = service.client.push_device({**profile, "name": NAME})
    body = {**search["request"], "device_id": made["id"], "name": "drift"}
    held = service.client.create_search({key: value for key, value in body.items() if value is not None})
    service.client.post(f"/v1/searches/{held['id']}/cancel")
    found = [Timing(f"{n:064d}", 0.1 * (n + 1), {"min_ms": 0.15 * (n + 1)}, {}) for n in range(PAIRS)]
    database = connect(f"sqlite:///{service.folder / 'data' / 'app.db'}")
    with database.writing() as session:
        timings.store(session, session.get_one(tables.Search, held["id"]), found)
    database.dispose()
    return made


def test_device_page_when_calibrated_then_its_progress_and_end_are_shown_without_a_reload(
    watched: Any, search: Any, service: Any, device: Any
) -> None:
    page = watched.page
    body = {"model_ids": [search["model_id"]]}
    made = service.client.post(f"/v1/devices/{NAME}/calibrations", body)
    page.goto(f"{service.url}/devices/{NAME}")
    page.locator("#calibrations", has_text="planning").wait_for(timeout=60_000)
    page.locator("#calibrations progress[aria-label=measuring]").wait_for(timeout=200_000)
    shoot(page, "calibrating")
    service.client.post(f"/v1/calibrations/{made['id']}/cancel")
    page.locator("#calibrations .chip", has_text="cancelled").wait_for(timeout=60_000)


def test_device_page_when_files_were_timed_then_each_is_a_point_beside_the_line_of_equality(
    watched: Any, service: Any, device: Any
) -> None:
    page = watched.page
    page.goto(f"{service.url}/devices/{NAME}")
    page.locator("#drift .point").first.wait_for(timeout=15_000)
    assert page.locator("#drift .point").count() == PAIRS
    told = page.locator("#accuracy").inner_text()
    assert "stale" in told and "measured over predicted 1.50" in told
    shoot(page, "drift")

"""The dashboard in a real browser: log in by the printed link, look at every page, draw every chart.

TIGHTFIT_SHOTS names a folder for screenshots.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.e2e.forms import opened, refused, started

pytestmark = pytest.mark.e2e


def shoot(page: Any, name: str) -> None:
    folder = os.environ.get("TIGHTFIT_SHOTS")
    if folder:
        Path(folder).mkdir(parents=True, exist_ok=True)
        page.screenshot(path=str(Path(folder) / f"{name}.png"), full_page=True)


def test_login_when_the_link_is_opened_then_a_strict_cookie_is_set(watched: Any, service: Any) -> None:
    page = watched.page
    assert page.url.startswith(f"{service.url}/searches")
    assert "token" not in page.url
    (cookie,) = page.context.cookies()
    assert (cookie["httpOnly"], cookie["sameSite"]) == (True, "Lax")


def test_pages_when_nobody_is_logged_in_then_lead_to_the_login(service: Any) -> None:
    answer = httpx.get(f"{service.url}/models?x=1")
    assert answer.status_code == 303
    assert answer.headers["location"] == "/login?next=%2Fmodels%3Fx%3D1"
    wrong = httpx.post(f"{service.url}/login", data={"token": "tf_wrong"})
    assert wrong.status_code == 403
    assert "set-cookie" not in wrong.headers


OUTSIDE_CHARTS = "".join(
    f":not({name}):not({name} *)" for name in (".js-plotly-plot", "#js-plotly-tester")
)  # the chart library styles what it draws, and a scratch area of its own, sooner or later


@pytest.mark.parametrize(
    "path", ["/searches", "/models", "/datasets", "/devices", "/devices/imx500", "/system", "/searches/new"]
)
def test_page_when_opened_then_has_a_heading_and_no_complaint(
    watched: Any, search: Any, service: Any, path: str
) -> None:
    page = watched.page
    answer = page.goto(service.url + path)
    assert answer.status == 200
    assert "script-src 'self';" in answer.headers["content-security-policy"]
    assert page.locator("h1").count() == 1
    assert " style=" not in answer.text()
    assert page.locator(f"[style]{OUTSIDE_CHARTS}").count() == 0
    shoot(page, path.strip("/").replace("/", "-"))


@pytest.mark.parametrize("watched", [{"color_scheme": "light"}, {"color_scheme": "dark"}], indirect=True)
def test_search_page_when_finished_then_draws_the_front_and_switches_axes(
    watched: Any, search: Any, service: Any
) -> None:
    page = watched.page
    page.goto(f"{service.url}/searches/{search['id']}")
    page.locator("#pareto .point").first.wait_for(timeout=15_000)
    assert page.locator("#pareto .point").count() >= 12
    assert page.locator("#history .point").count() >= 12
    page.get_by_role("button", name="Latency").click()
    page.wait_for_url("**x=latency_ms**")
    page.get_by_text("Latency (ms, modelled)").wait_for()
    shoot(page, "search-" + page.evaluate("matchMedia('(prefers-color-scheme: dark)').matches ? 'dark' : 'light'"))


def test_candidate_page_when_opened_then_shows_budget_layers_and_downloads(
    watched: Any, search: Any, service: Any
) -> None:
    page = watched.page
    page.goto(f"{service.url}/searches/{search['id']}")
    page.get_by_role("link", name="Best candidate").click()
    page.locator("#layers .point").first.wait_for(timeout=15_000)
    assert page.locator("text=kept").count() >= 2
    assert page.get_by_text("verified", exact=False).count() >= 1
    with page.expect_download() as download:
        page.get_by_role("link", name="Download").first.click()
    assert Path(download.value.path()).stat().st_size > 1000
    shoot(page, "candidate")


def test_model_page_when_opened_then_each_frozen_group_says_why(watched: Any, search: Any, service: Any) -> None:
    page = watched.page
    groups = service.client.get(f"/v1/models/{search['model_id']}")["graph"]["groups"]
    page.goto(f"{service.url}/models/{search['model_id']}")
    rows = page.locator("section", has=page.get_by_role("heading", name="Channel groups")).locator("tbody tr")
    found = [[cell.strip() for cell in row.locator("td").all_inner_texts()] for row in rows.all()]
    assert [row[0] for row in found] == [group["id"] for group in groups]
    assert [row[4] for row in found] == [f"frozen {g['frozen']}" if g["frozen"] else "prunable" for g in groups]
    assert any(group["frozen"] for group in groups)
    shoot(page, "model")


def test_weights_when_dropped_on_a_model_then_a_version_of_it_is_read_and_leads_back(
    watched: Any, search: Any, service: Any
) -> None:
    import torch
    from network import DigitNet
    from safetensors.torch import save_file

    base = search["model_id"]
    save_file(DigitNet().state_dict(), service.folder / "again.safetensors")
    save_file({"odd": torch.zeros(2)}, service.folder / "odd.safetensors")
    page = watched.page
    page.goto(f"{service.url}/models/{base}")
    page.get_by_label("Weights file").set_input_files(service.folder / "again.safetensors")
    page.wait_for_url(lambda url: "/models/mdl_" in url and base not in url)
    made = page.url.rpartition("/")[2]
    service.client.wait_ready("models", made)
    page.reload()
    assert page.locator("#base").inner_text() == "weights version of digits"
    shoot(page, "weights-version")
    page.locator("#base a").click()
    page.wait_for_url(f"**/models/{base}")
    assert page.locator("#versions tbody tr").count() == 1
    page.get_by_label("Weights file").set_input_files(service.folder / "odd.safetensors")
    page.wait_for_url(lambda url: base not in url)
    page.get_by_text("Done: the model is rejected.").wait_for(timeout=60_000)
    page.get_by_role("link", name="Show it").click()
    page.locator("#refusals").wait_for()
    assert "the network has no tensor of this name" in page.locator("#refusals").inner_text()
    assert ".pt2" in page.locator(".verdict").inner_text()
    shoot(page, "weights-refused")


@pytest.mark.parametrize("watched", [{"viewport": {"width": 400, "height": 800}}], indirect=True)
def test_pages_when_the_screen_is_narrow_then_never_scroll_sideways(watched: Any, search: Any, service: Any) -> None:
    page = watched.page
    for path in ("/searches", "/models", "/devices", "/searches/new", f"/searches/{search['id']}"):
        page.goto(service.url + path)
        assert page.evaluate("document.documentElement.scrollWidth") <= 400, path
    shoot(page, "narrow")


def test_new_search_when_the_budget_is_out_of_reach_then_says_so_before_queueing(
    watched: Any, search: Any, service: Any
) -> None:
    opened(watched.page, service, "1/100000")
    assert "reachable" in refused(watched)


def test_new_search_when_started_then_the_page_follows_it_to_the_end(watched: Any, search: Any, service: Any) -> None:
    page = watched.page
    opened(page, service, trials=6)
    page.get_by_label("Device").select_option("generic-npu")
    started(page)
    page.locator(".verdict").wait_for(timeout=120_000)
    assert "Inside the budget" in page.locator(".verdict").inner_text()

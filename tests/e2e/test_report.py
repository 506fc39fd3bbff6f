"""The report of the session's search in a real browser: opened from the candidate's page, and from the disk."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.e2e.test_dashboard import shoot

pytestmark = pytest.mark.e2e

SECTIONS = (
    "Budget",
    "Quality",
    "Pareto front of the search",
    "Layer by layer",
    "Sensitivities",
    "Where the time goes, and why it is not faster",
    "Verification",
    "Methods and repairs",
    "Provenance",
)
ORIGIN = "(() => { try { return document.cookie } catch (error) { return error.name } })()"


@pytest.fixture(scope="module")
def best(search: dict[str, Any], service: Any) -> dict[str, Any]:
    found: dict[str, Any] = service.client.candidates(search["id"])[0]
    return found


def test_report_when_opened_from_the_candidate_then_sandboxed_with_every_section_and_the_candidate_marked(
    watched: Any, best: dict[str, Any], service: Any
) -> None:
    watched.page.goto(f"{service.url}/candidates/{best['id']}")
    with watched.page.context.expect_page() as opened:
        watched.page.get_by_role("link", name="Open report").click()
    page = opened.value
    complaints: list[str] = []
    page.on("console", lambda message: complaints.append(message.text))
    page.wait_for_url(f"**/candidates/{best['id']}/report")  # until then the new page can't be loaded again
    answer = page.reload()
    assert (answer.status, page.locator("h1").inner_text()) == (200, "digits on generic-npu")
    assert page.locator(".verdict").inner_text().startswith("Inside the budget and verified: accuracy ")
    headings = [text.split(" ✓")[0] for text in page.locator("h2").all_inner_texts()]
    assert headings == list(SECTIONS)
    marked = page.locator(".chosen")
    assert marked.count() == 2
    told = marked.first.locator("title").text_content()
    assert told.startswith(f"This candidate: trial {best['trial_idx']} ")
    assert page.locator("#front-1-chosen .ring").bounding_box()["width"] > 5
    assert page.locator("#layers tbody tr").count() == len(best["layers"])
    ground = page.evaluate("getComputedStyle(document.querySelector('section')).backgroundColor")
    assert ground == "rgb(255, 255, 255)"  # the style sheet is the one that the page's own policy allows
    assert page.evaluate(ORIGIN) == "SecurityError"  # no origin, so no session to act in
    page.get_by_role("link", name="Provenance").click()
    assert page.url.endswith("#provenance")
    shoot(page, "report")
    others = [text for text in complaints if "'allow-scripts' permission" not in text]
    assert others == []  # the sandbox refuses the test driver's own scripts too; from the disk there is none


@pytest.mark.parametrize("options", [{"color_scheme": "dark"}, {"viewport": {"width": 400, "height": 800}}])
def test_report_when_opened_from_the_disk_then_no_complaint_and_no_request(
    browser: Any, best: dict[str, Any], service: Any, tmp_path: Path, options: dict[str, Any]
) -> None:
    file = service.client.download(service.client.report(best["id"])["id"], tmp_path / "report.html")
    context = browser.new_context(**options)
    page = context.new_page()
    complaints: list[str] = []
    asked: list[str] = []
    page.on("console", lambda message: complaints.append(message.text))
    page.on("request", lambda request: asked.append(request.url))
    page.goto(file.as_uri())
    assert page.locator("h2").count() == len(SECTIONS)
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    assert (complaints, asked) == ([], [file.as_uri()])
    shoot(page, "report-" + "-".join(options))
    context.close()

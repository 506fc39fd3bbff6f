"""The form of a new search, as people fill it in."""

from __future__ import annotations

from typing import Any


def opened(page: Any, service: Any, limit: str = "1/4", trials: int | None = None) -> None:
    """Open the form and give it a limit on the first metric, and a number of trials."""
    page.goto(f"{service.url}/searches/new")
    if trials is not None:
        page.get_by_label("Trials").fill(str(trials))
    page.locator(".limits input").first.fill(limit)


def started(page: Any) -> str:
    """Start the search; return its id once its page is there."""
    page.get_by_role("button", name="Start the search").click()
    page.wait_for_url("**/searches/srh_*")
    return str(page.url.rpartition("/")[2].partition("?")[0])


def refused(watched: Any) -> str:
    """Try to start the search; return what the form says against it. That the browser logs the refusal is no fault."""
    watched.page.get_by_role("button", name="Start the search").click()
    watched.page.locator("#problem").wait_for()
    watched.complaints[:] = [text for text in watched.complaints if "422" not in text]
    return str(watched.page.locator("#problem").inner_text())

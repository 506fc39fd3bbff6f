"""The report as a page: what it says, that nothing in it runs or is fetched, and that any name is text in it."""

from __future__ import annotations

import base64
import hashlib
import html
import itertools
import json
import re
from html.parser import HTMLParser
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from worker.export import report_view
from worker.export.export import export_all
from worker.export.report_html import LONGEST, cleaned, render

from .documents import document, unchecked

HOSTILE = "<script>alert(1)</script>\"'><img src=x onerror=alert(2)>"
RUNS = {"script", "iframe", "object", "embed", "form", "link", "img", "base", "foreignobject", "use", "image"}


class Page(HTMLParser):
    """A page taken apart: tags with their attributes in order, and headings with their texts."""

    def __init__(self, content: bytes) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.headings: list[tuple[int, str]] = []
        self._open: int | None = None
        self.feed(content.decode())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if re.fullmatch("h[1-6]", tag):
            self._open = int(tag[1])
            self.headings.append((self._open, ""))

    def handle_endtag(self, tag: str) -> None:
        if re.fullmatch("h[1-6]", tag):
            self._open = None

    def handle_data(self, data: str) -> None:
        if self._open is not None:
            level, text = self.headings.pop()
            self.headings.append((level, text + data))

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]


def text_of(content: bytes) -> str:
    """Return a page's text without its tags, white space evened out."""
    body = re.sub(r"<style>.*?</style>", "", content.decode(), flags=re.DOTALL)
    return html.unescape(re.sub(r"\s+", " ", re.sub(r"<[^>]*>", "", body)))


def test_render_when_all_is_told_then_says_it_in_the_order_it_is_read() -> None:
    page = Page(render(document()))
    assert [text.split(" ✓")[0] for level, text in page.headings if level <= 2] == [
        "resnet8 on npu", "Budget", "Quality", "Pareto front of the search", "Layer by layer", "Sensitivities",
        "Where the time goes, and why it is not faster", "Verification", "Methods and repairs", "Provenance",
    ]  # fmt: skip
    levels = [level for level, _ in page.headings]
    assert levels[0] == 1 and all(after <= before + 1 for before, after in itertools.pairwise(levels))
    anchors = {attributes["href"] for attributes in page.all("a")}
    assert anchors == {f"#{attributes['id']}" for attributes in page.all("section")}


def test_verdict_when_all_limits_are_kept_then_tells_accuracy_size_and_speed() -> None:
    assert report_view.verdict(document()) == (
        "Inside the budget and verified: accuracy 96.20 % (float 97.00 %) on the hold-out pictures; "
        "weights 1.23 kB, 8.0 times smaller; 50 µs, 2.00 times as fast as float (modelled)."
    )
    assert report_view.kind_of(document()) == "good"


@pytest.mark.parametrize(
    ("met", "quality", "state", "begins", "kind"),
    [
        (False, True, "verified", "Over the budget (BOPs) but verified", "warn"),
        (True, False, "verified", "Over the budget (accuracy) but verified", "warn"),
        (True, True, "failed", "Inside the budget but not verified", "bad"),
        (False, True, "failed", "Over the budget (BOPs) and not verified", "bad"),
    ],
)
def test_verdict_when_something_is_not_as_asked_then_says_so_first(
    met: bool, quality: bool, state: str, begins: str, kind: str
) -> None:
    told = document()
    told["verification"]["budget"][0]["met"] = met
    told["verification"]["state"] = state
    told["manifest"]["metrics"]["quality"]["met"] = quality
    assert report_view.verdict(told).startswith(begins)
    assert report_view.kind_of(told) == kind


def test_render_when_all_is_told_then_holds_the_figures_of_every_section() -> None:
    text = text_of(render(document()))
    for said in (
        "on the hold-out; float 97.00 %, −0.80 points", "tightest: Peak activation bytes, 99.0 % used",
        "BOPs2 M1.5 M500 k", "5 trials off the fronts are left out", "1stemconv12 / 160.750488", "All layers2,000",
        "11 µs: keep 8 instead of 12 channels of stem", "stemrelu31.5 dB", "codes equal",
        "QLinearConv × 7", "thorough", "not measured", "0.02000 → 0.01500kept", "Seed7", "onnx 1.19, torch 2.13.0",
        "EPYC (avx512_vnni), 2 cores", "2.50×", "accuracy 96.20 %, asked for ≥ 95.00 %: kept",
    ):  # fmt: skip
        assert said in text, said


def test_render_when_drawn_then_the_candidate_is_marked_and_pictures_are_described() -> None:
    content = render(document())
    page = Page(content)
    marked = re.findall(r'<g id="(front-\d)-chosen" class="chosen"><title>This candidate: ([^<]*)', content.decode())
    said = "trial 2 (sampled), candidate 1: accuracy 97.00 %, "
    assert marked == [("front-1", f"{said}1.5 M"), ("front-2", f"{said}15 kB")]
    ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    for attributes in page.all("svg"):
        labelled = (attributes.get("aria-labelledby") or "").split()
        assert set(labelled) <= set(ids)
        assert labelled or attributes.get("aria-label") is not None or attributes.get("aria-hidden") == "true"
    assert all(attributes.get("scope") in ("col", "row") for attributes in page.all("th"))


def test_render_when_read_by_a_browser_then_nothing_runs_and_nothing_is_fetched() -> None:
    content = render(document())
    page = Page(content)
    policy = next(item["content"] for item in page.all("meta") if "http-equiv" in item)
    style = re.search(r"<style>(.*?)</style>", content.decode(), re.DOTALL)
    assert style is not None
    digest = base64.b64encode(hashlib.sha256(style[1].encode()).digest()).decode()
    assert policy == f"default-src 'none'; style-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'"
    assert "url(" not in style[1] and "@import" not in style[1]
    assert not inert(page)


def inert(page: Page) -> list[tuple[str, dict[str, str | None]]]:
    """Return the tags that run, load or lead somewhere else."""
    return [
        (tag, attributes)
        for tag, attributes in page.tags
        if tag in RUNS
        or any(name.startswith("on") or name in ("style", "src", "srcset", "xlink:href") for name in attributes)
        or not (attributes.get("href") or "#").startswith("#")
    ]


def test_render_when_every_text_is_hostile_then_all_of_it_is_text() -> None:
    def hostile(value: Any) -> Any:
        if isinstance(value, str):
            return HOSTILE if value not in ("verified", "baseline") else value
        if isinstance(value, dict):
            return {key: hostile(item) for key, item in value.items()}
        return [hostile(item) for item in value] if isinstance(value, list) else value

    told = hostile(document())
    for point in told["search"]["front"]["points"]:
        point["costs"] = {HOSTILE: 1.0 + point["trial"]}
    told["search"]["front"]["limits"] = {HOSTILE: 2.0}
    told["verification"]["operators"] = {HOSTILE: 1}
    page = Page(content := render(told))
    assert not inert(page)
    assert b"<script" not in content and b"<img" not in content
    assert text_of(content).count(HOSTILE) > 30
    kept = [tag for tag, _ in Page(render(document())).tags if tag in ("section", "table", "svg")]
    assert [tag for tag, _ in page.tags if tag in ("section", "table", "svg")].count("section") == kept.count("section")


def test_cleaned_when_characters_can_not_be_seen_then_replaced_and_long_names_are_cut() -> None:
    found = cleaned({"a\u202eb": ["x\0y\ud800", 1, None, "é…"], "c": "n" * 1000})
    assert found == {"a\ufffdb": ["x\ufffdy\ufffd", 1, None, "é…"], "c": "n" * (LONGEST - 1) + "…"}


@settings(max_examples=40, deadline=None)
@given(st.text(max_size=60))
def test_render_when_a_layer_has_any_name_then_a_page_that_shows_it(name: str) -> None:
    told = document()
    told["candidate"]["layers"][0]["name"] = name
    content = render(told)
    assert not inert(Page(content))
    assert (
        f'<bdi class="mono">{html.escape(cleaned(name))}</bdi>'.replace("&quot;", "&#34;")
        .replace("&#x27;", "&#39;")
        .encode()
        in content
    )


def test_render_when_asked_twice_then_the_same_bytes_whatever_the_order_of_the_keys() -> None:
    turned = json.loads(json.dumps(document()), object_pairs_hook=lambda pairs: dict(reversed(pairs)))
    assert render(document()) == render(document()) == render(turned)
    slower = document()
    slower["verification"]["latency"]["compressed"]["min_ms"] = 0.0801
    changed = [line for line in render(slower).splitlines() if line not in render(document()).splitlines()]
    assert len(changed) == 1  # the measured time alone


def test_render_when_the_file_could_not_be_checked_then_the_failure_stands_in_front() -> None:
    content = render(unchecked())
    page, text = Page(content), text_of(content)
    assert 'class="verdict bad"' in content.decode()
    assert "Inside the budget but not verified: weights 1.23 kB" in text
    assert "onnx-outputs-error: Fail: no such operator" in text
    assert {attributes["id"] for attributes in page.all("section")} == {
        "budget", "quality", "verification", "methods", "provenance",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("latency", "times"),
    [(None, 2.5), ({"measured": {"min_ms": 0.05}, "float": {"min_ms": 0.15}}, 3.0)],
)
def test_speedup_when_the_latency_was_measured_then_by_what_was_measured_beside_it(latency: Any, times: float) -> None:
    told = document()
    told["verification"]["evidence"]["latency_ms"] = "measured"
    told["manifest"]["metrics"]["latency"] = latency
    assert report_view.speedup(told) == pytest.approx(times)


def test_operators_when_listed_then_those_that_only_convert_are_told_from_integer_kernels() -> None:
    found = report_view.operators({"QLinearConv": 7, "QuantizeLinear": 1, "Clip": 2})
    assert found == [("Clip", 2, ""), ("QLinearConv", 7, "good"), ("QuantizeLinear", 1, "warn")]


def test_report_when_exported_then_page_and_json_say_the_same(lab: Any, mixed: Any, tmp_path: Any) -> None:
    export_all(lab.request(mixed), tmp_path)
    told = json.loads((tmp_path / "report.json").read_text())
    assert (tmp_path / "report.html").read_bytes() == render(told)
    lowest = sorted(told["verification"]["site_sqnr_db"].values())[:5]
    assert [item["sqnr_db"] for item in told["verification"]["worst_layers"]] == lowest

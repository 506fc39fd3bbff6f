"""Pages, login and policy against the real application on a fresh SQLite database."""

from __future__ import annotations

import gzip
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient

from app.domain.demand import Timing
from app.main import create_app
from app.settings import Settings
from app.store import blobs, measuring, tables, timings
from worker.graph.errors import unsupported
from worker.job import problem

WEB = Path(__file__).resolve().parents[3] / "app" / "web"
STEM, HEAD = ({"terms": [[group, 1]], "fixed": 0} for group in ("stem", "head"))
GRAPH: dict[str, Any] = {
    "layers": [
        {
            "name": "stem", "kind": "conv", "weight_shape": [4, 1, 3, 3], "positions": 64, "groups": 1, "step": 1,
            "in_width": {"terms": [], "fixed": 1}, "out_width": STEM, "input": "x", "output": "stem",
        },
        {
            "name": "head", "kind": "linear", "weight_shape": [10, 4], "positions": 1, "groups": 1, "step": 3,
            "in_width": STEM, "out_width": HEAD, "input": "mean", "output": "head",
        },
    ],
    "groups": [
        {"id": "stem", "channels": 4, "producers": ["stem"], "consumers": ["head"], "frozen": None},
        {"id": "head", "channels": 10, "producers": ["head"], "consumers": [], "frozen": "network output"},
    ],
    "activations": [
        {"id": "x", "width": {"terms": [], "fixed": 1}, "positions": 64, "first_step": 0, "last_step": 1},
        {"id": "stem", "width": STEM, "positions": 64, "first_step": 1, "last_step": 2},
        {"id": "mean", "width": STEM, "positions": 1, "first_step": 2, "last_step": 3},
        {"id": "head", "width": HEAD, "positions": 1, "first_step": 3, "last_step": 3},
    ],
    "steps": [
        {
            "name": "mean", "kind": "mean", "inputs": ["stem"], "output": "mean", "width": STEM, "positions": 1,
            "window": 64, "step": 2,
        },
    ],
    "input_shape": [1, 8, 8],
    "output_shape": [10],
    "parameters": 90,
    "op_counts": {},
}  # fmt: skip
CHOSEN = {
    "keep": {"stem": 3, "head": 10},
    "weight_bits": {"stem": 4, "head": 8},
    "activation_bits": {"x": 8, "stem": 8, "mean": 8, "head": 32},
}
COSTS = {"macs": 1, "bops": 1000, "weight_bytes": 500, "peak_activation_bytes": 1, "latency_ms": 0.5, "energy_mj": 0}
DEVICE = json.loads((WEB.parent / "devices" / "generic-npu.json").read_text())
HOSTILE = '<script>alert("x")</script>'


@pytest.fixture(scope="module")
def anonymous(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestClient]:
    settings = Settings(data_dir=tmp_path_factory.mktemp("web"), disk_floor_bytes=0)
    app = create_app(settings)
    with TestClient(app, follow_redirects=False) as client:
        with app.state.service.database.writing() as session:
            seed(session)
            seed_fleet(session)
        yield client


@pytest.fixture
def web(anonymous: TestClient) -> Iterator[TestClient]:
    key = anonymous.app.state.settings.key_file.read_text().strip()  # type: ignore[attr-defined]
    assert anonymous.get(f"/login?token={key}").status_code == 303
    yield anonymous
    anonymous.cookies.clear()


def seed(session: Any) -> None:
    blobs.record(session, "ab" * 32, 5)
    session.add(
        tables.Model(
            id="mdl_1",
            name=HOSTILE,
            format="onnx",
            blob_sha="ab" * 32,
            bytes=5,
            state="ready",
            graph=GRAPH,
            problem=None,
        )
    )
    session.flush()
    session.add(
        tables.Search(
            id="srh_1", name="nightly", model_id="mdl_1", dataset={"all": "dst_1"}, device_id="generic-npu",
            device=DEVICE, spec={}, limits={"bops": 2000.0}, state="completed", outcome="feasible",
            progress_done=2, progress_total=2,
            baseline={"metrics": {"accuracy": 0.9}, "holdout": {"accuracy": 0.88}, "costs": COSTS},
        )
    )  # fmt: skip
    session.flush()
    for idx, kind, accuracy, bops in (
        (0, "baseline", 0.9, 64_000),
        (1, "seed", 0.85, 1000),
        (2, "sampled", 0.87, 3000),
    ):
        session.add(
            tables.Trial(
                id=f"trl_{idx}", search_id="srh_1", idx=idx, kind=kind, state="done", costs={**COSTS, "bops": bops},
                metrics={"accuracy": accuracy, "kl": 0.1, "agreement": 0.9}, feasible=bops <= 2000, seconds=0.2,
            )
        )  # fmt: skip
    session.add(tables.Trial(id="trl_3", search_id="srh_1", idx=3, kind="sampled", state="running"))
    layer = {
        "name": "stem", "kind": "conv", "out_channels": 3, "full_out_channels": 4, "weight_bits": 4, "input_bits": 8,
        "macs": 10, "bops": 320, "weight_bytes": 20, "latency_ms": 0.01,
    }  # fmt: skip
    row = {"metric": "bops", "limit": 2000.0, "value": 1000.0, "slack": 1000.0, "evidence": "modelled", "met": True}
    metrics = {"evaluation": {"accuracy": 0.85, "kl": 0.1}, "holdout": {"accuracy": 0.84, "kl": 0.1}}
    session.add(
        tables.Candidate(
            id="cnd_1", search_id="srh_1", trial_idx=1, rank=1, assignment=CHOSEN, costs=COSTS, metrics=metrics,
            layers=[layer], budget=[row], feasible=True,
        )
    )  # fmt: skip


def seed_fleet(session: Any) -> None:
    session.add(tables.Fleet(id="flt_1", name="boards", spec={"share": 0.2, "model_id": "mdl_1"}))
    members = (("completed", "feasible", 9), ("running", None, 3), ("queued", None, 0))
    for place, (state, outcome, done) in enumerate(members):
        best = {"metrics": {"accuracy": 0.8 + place / 100, "kl": 0.1}, "costs": COSTS} if done else None
        session.add(
            tables.Search(
                id=f"srh_f{place}", name=f"boards: {place}", model_id="mdl_1", dataset={"all": "dst_1"},
                device_id="generic-npu", device=DEVICE, spec={"metric": "kl" if place else "accuracy", "name": "n"},
                limits={"bops": 2000.0}, state=state, outcome=outcome, stage="search", progress_done=done,
                progress_total=9 if done else 0, best=best, fleet_id="flt_1", place=place,
            )
        )  # fmt: skip


def cells(text: str) -> list[list[str]]:
    """Return the text of every table row, cell by cell."""
    rows = re.findall(r"<tr>(.*?)</tr>", text[text.index("<main") :], re.S)
    bare = [re.findall(r"<td[^>]*>(.*?)</td>", row, re.S) for row in rows]
    return [[" ".join(re.sub(r"<[^>]+>", "", cell).split()) for cell in row] for row in bare if row]


def test_fleet_page_when_members_stand_differently_then_each_says_how_far_it_is_and_its_best(web: TestClient) -> None:
    page = web.get("/fleets/flt_1").text
    rows = cells(page)
    assert [row[2] for row in rows] == ["completed", "running", "queued"]
    assert [row[4] for row in rows] == ["search 9/9", "search 3/9", "waits for the first"]
    assert [row[6] for row in rows] == ["80.00 %", "0.1000 KL", "–"]
    assert rows[0][0].endswith("measures first") and rows[0][7] == "BOPs 1 k ≤ 2 k"
    assert 'data-refresh="/web/fleets/flt_1"' in page and 'data-call="/v1/fleets/flt_1/cancel"' in page
    (row,) = cells(web.get("/fleets").text)
    assert row[:3] == ["boards", "running", "1 of 3 searches ended, 1 inside their budgets"]
    assert web.get("/fleets/flt_9").status_code == 404


def test_search_page_when_it_knows_its_bounds_then_asks_what_if(web: TestClient) -> None:
    assert 'id="whatif"' not in web.get("/searches/srh_1").text
    with web.app.state.service.database.writing() as session:  # type: ignore[attr-defined]
        row = session.get_one(tables.Search, "srh_1")
        row.reachable = {name: {**COSTS, "bops": bops} for name, bops in (("least", 100.0), ("w8a8", 4000.0))}
    text = web.get("/searches/srh_1").text
    assert 'data-metric="bops" data-low="100.0" data-high="4000.0"' in text
    assert "{&#34;bops&#34;: 2000.0}" in text and "100 to 4 k" in text


def test_new_search_page_when_like_another_then_filled_in_with_the_limits_asked_for(web: TestClient) -> None:
    text = web.get("/searches/new?like=srh_f1&limits=bops:500").text
    assert "[{&#34;max&#34;: 500.0, &#34;metric&#34;: &#34;bops&#34;}]" in text
    assert "{&#34;metric&#34;: &#34;kl&#34;" in text
    assert '<option value="kl" selected>KL</option>' in text
    assert '<option value="tpe" selected>tpe</option>' in text and '<option value="cmaes" >cmaes</option>' in text
    assert '<option value="front" >' in text
    assert web.get("/searches/new?like=srh_none").status_code == 404


def test_new_search_page_when_opened_then_offers_no_data_every_method_and_every_opset(web: TestClient) -> None:
    text = web.get("/searches/new").text
    assert '<option value="none" >none: inputs are drawn' in text
    assert re.findall(r'<option value="([a-z-]+)" title="[^"]+" data-trains="([01])"', text) == [
        ("straight-through", "1"), ("relaxed-quantization", "1"), ("learned-thresholds", "1"), ("djpq", "1"),
        ("channel-gating", "1"), ("bias-correction", "0"), ("relaxed-rounding", "0"),
    ]  # fmt: skip
    assert 'data-training="epochs rows batch rate labels shift mirror max_wall_s seed"' in text
    assert [int(opset) for opset in re.findall(r'<option value="(\d\d)" >\1</option>', text)] == list(range(13, 22))


def test_search_page_when_the_baseline_guesses_then_says_so(web: TestClient) -> None:
    assert "no better than guessing" not in web.get("/searches/srh_1").text
    with web.app.state.service.database.writing() as session:  # type: ignore[attr-defined]
        row = session.get_one(tables.Search, "srh_1")
        before, row.baseline = row.baseline, {**(row.baseline or {}), "warnings": ["baseline-is-guessing"]}
    try:
        assert "no better than guessing" in web.get("/searches/srh_1").text
        assert "baseline-is-guessing" in web.get("/v1/searches/srh_1").json()["warnings"]
    finally:
        with web.app.state.service.database.writing() as session:  # type: ignore[attr-defined]
            session.get_one(tables.Search, "srh_1").baseline = before


def test_page_when_nobody_is_logged_in_then_leads_to_the_login(anonymous: TestClient) -> None:
    answer = anonymous.get("/models?x=1")
    assert (answer.status_code, answer.headers["location"]) == (303, "/login?next=%2Fmodels%3Fx%3D1")
    assert anonymous.get("/web/models").status_code == 401


def test_login_when_the_key_is_right_then_sets_a_strict_cookie_and_hides_the_token(anonymous: TestClient) -> None:
    key = anonymous.app.state.settings.key_file.read_text().strip()  # type: ignore[attr-defined]
    answer = anonymous.post("/login", data={"token": key, "next": "/models"})
    assert (answer.status_code, answer.headers["location"]) == (303, "/models")
    cookie = answer.headers["set-cookie"]
    assert "HttpOnly" in cookie
    assert "samesite=lax" in cookie.lower()
    assert key not in cookie
    anonymous.cookies.clear()


def test_login_when_the_key_is_wrong_then_says_so_without_a_cookie(anonymous: TestClient) -> None:
    answer = anonymous.get("/login?token=tf_wrong")
    assert answer.status_code == 403
    assert "set-cookie" not in answer.headers
    assert "not known" in answer.text


@pytest.mark.parametrize(
    "target", ["//evil.example", "https://evil.example/", "/\\evil.example", "/login?token=x", "x"]
)
def test_login_when_told_to_go_elsewhere_then_stays_here(anonymous: TestClient, target: str) -> None:
    key = anonymous.app.state.settings.key_file.read_text().strip()  # type: ignore[attr-defined]
    answer = anonymous.post("/login", data={"token": key, "next": target})
    assert answer.headers["location"] == "/searches"
    anonymous.cookies.clear()


@pytest.mark.fault(18)
@pytest.mark.parametrize(
    "path",
    ["/searches", "/models", "/models/mdl_1", "/datasets", "/devices",
     "/devices/coral-edgetpu", "/devices/snapdragon-8gen3-htp@1", "/system", "/searches/new", "/searches/srh_1",
     "/searches/new?like=srh_1&limits=bops:500", "/fleets", "/fleets/flt_1", "/web/fleets", "/web/fleets/flt_1",
     "/candidates/cnd_1", "/web/models", "/web/datasets", "/web/searches", "/web/searches/srh_1/status",
     "/web/searches/srh_1/trials", "/web/models/mdl_1"],
)  # fmt: skip
def test_page_when_opened_then_keeps_the_policy_and_escapes_names(web: TestClient, path: str) -> None:
    answer = web.get(path)
    assert answer.status_code == 200, answer.text[-2000:]
    policy = answer.headers["content-security-policy"]
    assert "script-src 'self';" in policy
    assert "unsafe-inline" not in policy.replace("style-src-attr 'unsafe-inline'", "")
    assert HOSTILE not in answer.text
    assert not re.search(r"<script(?![^>]*\ssrc=)|\son[a-z]+=|\sstyle=", answer.text)


def test_model_page_when_groups_are_frozen_then_each_row_says_why(web: TestClient) -> None:
    rows = [row for row in cells(web.get("/models/mdl_1").text) if len(row) == 5]
    assert rows == [
        ["stem", "4", "stem", "head", "prunable"],
        ["head", "10", "head", "–", "frozen network output"],
    ]


def test_model_page_when_a_weights_version_then_leads_to_its_base_and_the_base_to_it(web: TestClient) -> None:
    row = tables.Model(id="mdl_2", name="epoch 9", format="onnx", blob_sha="ab" * 32, bytes=5, state="ready")
    row.graph, row.base_id, row.weights_sha, row.weights_bytes = GRAPH, "mdl_1", "cd" * 32, 4321
    with web.app.state.service.database.writing() as session:  # type: ignore[attr-defined]
        blobs.record(session, "cd" * 32, 4321)
        session.add(row)
    version, base = web.get("/models/mdl_2").text, web.get("/models/mdl_1").text
    assert 'weights version of <a href="/models/mdl_1">&lt;script&gt;' in version
    assert "cd" * 32 in version and "4.32 kB" in version
    assert HOSTILE not in version
    assert 'href="/models/mdl_2">epoch 9</a>' in base
    assert "weights version of" not in base
    assert 'data-upload="/v1/models/mdl_1/weights"' in base
    assert web.get("/models").text.count("weights version</span>") == 1


def test_model_page_when_operators_are_not_read_then_shows_type_count_and_nodes(web: TestClient) -> None:
    refusal = unsupported({"Loop": 2, "<b>": 1}, [("nms_1", "Loop"), ("nms_2", "Loop"), ("odd", "<b>")])
    row = tables.Model(id="mdl_3", name="detector", format="onnx", blob_sha="ab" * 32, bytes=5, state="rejected")
    row.problem = problem(refusal.slug, refusal.detail, refusal.errors)
    with web.app.state.service.database.writing() as session:  # type: ignore[attr-defined]
        session.add(row)
    text = web.get("/models/mdl_3").text
    assert cells(text) == [["Loop", "2", "/graph/nms_1, /graph/nms_2"], ["&lt;b&gt;", "1", "/graph/odd"]]
    assert "Loop (2x)" in text and "<b>" not in text
    assert "Drop the" not in text


def test_device_page_when_opened_then_shows_rules_figures_sources_and_revisions(web: TestClient) -> None:
    text = web.get("/devices/snapdragon-8gen3-htp").text
    grid = [row for row in cells(text) if re.fullmatch(r"w\d+", row[0])]
    assert grid == [["w16", "✓ all", "–"], ["w8", "✓ all", "✓ all"], ["w4", "✓ conv, linear", "✓ conv, linear"]]
    figures = {row[0]: row[1:] for row in cells(text) if row[0].startswith("/")}
    assert figures["/memory/weight_store/cache_bytes"] == [
        "8388608",
        "high",
        "VTCM 8 MB: ExecuTorch&#39;s table for SM8650",
    ]
    assert figures["/compute/0/gmacs"][:2] == ["17000", "low"]
    assert 'href="/devices/snapdragon-8gen3-htp@1"' in text
    assert 'href="/devices/snapdragon-8gen3-htp@1"' in web.get("/devices").text
    assert web.get("/devices/snapdragon-8gen3-htp@2").status_code == 404


def test_device_page_when_there_are_revisions_then_lists_them_and_the_list_shows_the_newest(web: TestClient) -> None:
    record = web.get("/v1/devices/generic-npu").json()["profile"]
    for revision, rate in ((1, 32.0), (2, 48.0)):
        changed = {**record, "name": "twice", "title": HOSTILE, "compute": [{**record["compute"][4], "gmacs": rate}]}
        row = tables.Device(id=f"dev_{revision}", name="twice", revision=revision, profile=changed, builtin=False)
        with web.app.state.service.database.writing() as session:  # type: ignore[attr-defined]
            session.add(row)
    text = web.get("/devices/twice").text
    assert 'href="/devices/twice@1"' in text and 'href="/devices/twice@2"' in text
    assert HOSTILE not in text
    listed = web.get("/devices").text
    assert 'href="/devices/twice@2"' in listed and 'href="/devices/twice@1"' not in listed
    figure = web.get("/web/devices/twice@1/roofline.json").json()
    assert max(figure["data"][0]["y"]) == 16.0


def test_device_page_when_calibrated_and_timed_then_shows_progress_and_drift(web: TestClient) -> None:
    assert "Never calibrated" in web.get("/devices/stm32h7").text
    assert "Nothing was timed with this revision yet" in web.get("/devices/stm32h7").text
    running = tables.Calibration(id="cal_1", device="rpi5-cpu", base_id="rpi5-cpu", model_ids=["mdl_1"])
    running.state, running.stage, running.progress_done, running.progress_total = "running", "measuring", 12, 640
    profile = web.get("/v1/devices/rpi5-cpu").json()["profile"]
    found = [Timing(f"{n:064d}", 1.0, {"min_ms": 2.0}, {}) for n in range(8)]
    with web.app.state.service.database.writing() as session:  # type: ignore[attr-defined]
        search = session.get_one(tables.Search, "srh_1")
        kept = dict(search.device)
        search.device = profile
        session.add(running)
        timings.store(session, search, found)
        search.device = kept
    text = web.get("/devices/rpi5-cpu").text
    assert 'data-refresh="/web/devices/rpi5-cpu/calibrations"' in text
    assert '<progress value="12" max="640" aria-label="measuring">' in text
    assert "stale" in text and "measured over predicted 2.00" in text
    figure = web.get("/web/devices/rpi5-cpu@1/drift.json").json()
    assert figure["data"][-1]["y"] == [2.0] * 8
    with web.app.state.service.database.writing() as session:  # type: ignore[attr-defined]
        measuring.conclude(session.get_one(tables.Calibration, "cal_1"), "failed", {"title": "x", "detail": HOSTILE})
    fresh = web.get("/web/devices/rpi5-cpu/calibrations").text
    assert "data-refresh" not in fresh and "failed" in fresh and HOSTILE not in fresh


def test_search_page_when_finished_then_shows_the_verdict_and_both_chips(web: TestClient) -> None:
    text = web.get("/searches/srh_1").text
    assert "Inside the budget: every limit is kept." in text
    assert "85.00 %" in text
    assert 'href="/candidates/cnd_1"' in text
    assert "data-live" not in text


def test_pareto_figure_when_fetched_then_marks_the_candidate_and_the_limit(web: TestClient) -> None:
    figure = web.get("/web/searches/srh_1/pareto.json?x=bops").json()
    drawn = {trace["name"]: trace for trace in figure["data"]}
    assert drawn["chosen"]["customdata"] == ["/candidates/cnd_1"]
    assert drawn["over budget"]["x"] == [3000]
    assert figure["layout"]["shapes"][1]["x0"] == 2000.0
    assert web.get("/web/searches/srh_1/pareto.json?x=rubbish").status_code == 422


def test_candidate_page_when_opened_then_tells_change_from_the_float_network(web: TestClient) -> None:
    text = web.get("/candidates/cnd_1").text
    assert "-5.00" in text
    assert "-4.00" in text
    assert "3 / 4" in text
    figure = web.get("/web/candidates/cnd_1/layers.json").json()
    assert figure["data"][1]["y"] == [1]


def test_candidate_page_when_opened_then_shows_where_the_time_goes_and_what_would_save_most(web: TestClient) -> None:
    text = web.get("/candidates/cnd_1").text
    assert "of its time is overhead: fixed times per inference and operation dominate" in text
    assert "Single changes that would save most" in text
    figure = web.get("/web/candidates/cnd_1/why.json").json()
    assert figure["layout"]["barmode"] == "stack"
    assert {trace["name"] for trace in figure["data"]} >= {"compute", "overhead"}
    assert figure["data"][0]["x"][-1] == "whole network"
    overhead = next(trace for trace in figure["data"] if trace["name"] == "overhead")
    assert overhead["y"] == pytest.approx([0.002, 0.002, 0.002, 0.02])
    told = web.get("/v1/candidates/cnd_1/why").json()
    assert {op["name"] for op in told["operations"]} == {"stem", "mean", "head"}
    assert sum(sum(trace["y"]) for trace in figure["data"]) == pytest.approx(told["latency_ms"])


REPORT = b"<!doctype html><title>r</title><script>alert(1)</script>"


def seed_report(service: Any, candidate: str = "cnd_1") -> None:
    """Store an artefact as a worker would, but with a page that a broken child might have written."""
    sha = service.blobs.put(REPORT)
    with service.database.writing() as session:
        blobs.record(session, sha, len(REPORT))
        session.add(
            tables.Artefact(
                id="art_report", candidate_id=candidate, kind="report-html", blob_sha=sha, bytes=len(REPORT),
                filename="net.report.html",
            )
        )  # fmt: skip


def test_report_when_a_candidate_has_one_then_shown_in_a_sandbox_and_linked_to(web: TestClient) -> None:
    assert web.get("/candidates/cnd_1/report").status_code == 404
    assert "Open report" not in web.get("/candidates/cnd_1").text
    service = web.app.state.service  # type: ignore[attr-defined]
    seed_report(service)
    try:
        assert 'href="/candidates/cnd_1/report" target="_blank" rel="noopener"' in web.get("/candidates/cnd_1").text
        assert "<td>Report (page)</td>" in web.get("/candidates/cnd_1").text
        assert web.get("/v1/artefacts/art_report").json()["title"] == "Report (page)"
        shown, kept = web.get("/candidates/cnd_1/report"), web.get("/v1/artefacts/art_report/content")
    finally:
        with service.database.writing() as session:
            session.delete(session.get_one(tables.Artefact, "art_report"))
    assert shown.content == kept.content == REPORT
    policy = [part.strip() for part in shown.headers["content-security-policy"].split(";")]
    assert policy[:2] == ["sandbox", "default-src 'none'"]
    assert not any("script" in part for part in policy)
    assert shown.headers["content-type"] == "text/html; charset=utf-8"
    assert shown.headers["x-content-type-options"] == kept.headers["x-content-type-options"] == "nosniff"
    assert kept.headers["content-type"] == "application/octet-stream"
    assert kept.headers["content-disposition"].startswith("attachment")


def test_report_when_nobody_is_logged_in_then_leads_to_the_login(anonymous: TestClient) -> None:
    answer = anonymous.get("/candidates/cnd_1/report")
    assert (answer.status_code, answer.headers["location"]) == (303, "/login?next=%2Fcandidates%2Fcnd_1%2Freport")


def test_candidate_why_when_there_is_none_then_not_found(web: TestClient) -> None:
    answer = web.get("/v1/candidates/cnd_none/why")
    assert (answer.status_code, answer.json()["type"]) == (404, "/problems/not-found")


def test_page_when_the_id_is_unknown_then_a_page_says_so(web: TestClient) -> None:
    answer = web.get("/searches/srh_unknown")
    assert answer.status_code == 404
    assert "<h1>Not found</h1>" in answer.text


def test_plotly_when_fetched_then_is_compressed_and_kept_for_ever(anonymous: TestClient) -> None:
    answer = anonymous.get("/static/plotly.js", headers={"Accept-Encoding": "gzip"})
    assert answer.headers["content-encoding"] == "gzip"
    assert "immutable" in answer.headers["cache-control"]
    assert len(answer.content) > 4_000_000
    assert int(answer.headers["content-length"]) < 1_600_000
    plain = anonymous.get("/static/plotly.js", headers={"Accept-Encoding": "identity"})
    assert gzip.compress(plain.content[:100]) == gzip.compress(answer.content[:100])


def test_static_file_when_the_address_has_its_digest_then_is_kept_for_ever(web: TestClient) -> None:
    address = re.search(r'href="(/static/app.css\?v=[0-9a-f]{12})"', web.get("/models").text)
    assert address is not None
    assert "immutable" in web.get(address[1]).headers["cache-control"]
    assert web.get("/static/app.css").headers["cache-control"] == "no-cache"


def test_templates_and_modules_when_read_then_nothing_is_inline_or_fetched_from_elsewhere() -> None:
    for path in [*WEB.glob("templates/*.html"), *WEB.glob("static/*")]:
        text = path.read_text().replace("http://www.w3.org/2000/svg", "")
        assert "http://" not in text, path.name
        assert "https://" not in text, path.name
        assert "eval(" not in text, path.name


def test_schedules_when_there_are_some_then_the_page_names_cron_and_last_search(web: TestClient) -> None:
    assert "No schedule yet" in web.get("/schedules").text
    row = tables.Schedule(id="sch_1", name=HOSTILE, cron="0 2 * * *", timezone="UTC", template={}, enabled=True)
    row.last_search_id = "srh_1"
    with web.app.state.service.database.writing() as session:  # type: ignore[attr-defined]
        session.add(row)
    text = web.get("/schedules").text
    assert "0 2 * * *" in text and 'href="/searches/srh_1"' in text
    assert HOSTILE not in text

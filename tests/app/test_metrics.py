"""What Prometheus is told, what the Grafana dashboard asks of it, and what the log holds."""

from __future__ import annotations

import json
import logging
import re
from pathlib import Path

import pytest
from fastapi.testclient import TestClient
from prometheus_client.parser import text_string_to_metric_families

from app import logs
from app.actions import Service, create_model
from app.domain import ids
from app.main import create_app
from app.settings import Settings
from app.store.tables import Search, Trial

GRAFANA = Path(__file__).resolve().parents[2] / "docs" / "grafana.json"


def told(client: TestClient) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    """Return every sample by name and labels."""
    families = text_string_to_metric_families(client.get("/metrics").text)
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in families
        for sample in family.samples
    }


def fill(service: Service) -> None:
    """Store a model that waits, and a search with trials of every kind."""
    model = create_model(service, "default", "net", "onnx", service.blobs.put(b"net"), 3)
    search = Search(id=ids.new_id("search"), name="s", model_id=model.id, dataset={}, device_id="d", device={}, spec={},
                    limits={}, state="running")  # fmt: skip
    with service.database.writing() as session:
        session.add(search)
        session.flush()
        for idx, (state, seconds, kind) in enumerate(
            [("done", 0.2, None), ("done", 2.0, None), ("failed", 40.0, "out-of-memory"), ("running", None, None)]
        ):
            failure = None if kind is None else {"kind": kind, "detail": ""}
            session.add(Trial(id=ids.new_id("trial"), search_id=search.id, idx=idx, kind="sampled", state=state,
                              seconds=seconds, failure=failure))  # fmt: skip


def test_metrics_when_asked_on_both_databases_then_the_figures_of_the_tables(kept: Service) -> None:
    fill(kept)
    with TestClient(create_app(kept.settings)) as client:
        found = told(client)
    assert found["tightfit_searches", (("state", "running"),)] == 1
    assert found["tightfit_trials_total", (("state", "done"),)] == 2
    assert found["tightfit_trial_failures_total", (("class", "out-of-memory"),)] == 1
    assert found["tightfit_queue_depth", (("queue", "control"),)] == 1
    assert found["tightfit_queue_depth", (("queue", "trials"),)] == 0
    assert 0 <= found["tightfit_queue_age_seconds", (("queue", "control"),)] < 60
    assert found["tightfit_trial_seconds_bucket", (("le", "0.3"),)] == 1
    assert found["tightfit_trial_seconds_bucket", (("le", "3.0"),)] == 2
    assert found["tightfit_trial_seconds_count", ()] == 3
    assert found["tightfit_trial_seconds_sum", ()] == pytest.approx(42.2)


def test_request_seconds_when_a_route_is_asked_then_counted_under_its_pattern(tmp_path: Path) -> None:
    settings = Settings(data_dir=tmp_path, disk_floor_bytes=0)
    with TestClient(create_app(settings)) as client:
        client.headers["Authorization"] = f"Bearer {settings.key_file.read_text().strip()}"
        for _ in range(3):
            client.get("/v1/models/mdl_none")
        found = told(client)
    labels = (("method", "GET"), ("route", "/v1/models/{id}"), ("status", "404"))
    assert found["tightfit_request_seconds_count", labels] == 3
    assert 0 < found["tightfit_request_seconds_sum", labels] < 5


def test_grafana_dashboard_when_read_then_every_metric_it_asks_for_is_told(tmp_path: Path) -> None:
    panels = json.loads(GRAFANA.read_text())["panels"]
    asked = {
        name for panel in panels for target in panel["targets"] for name in re.findall(r"tightfit_\w+", target["expr"])
    }
    with TestClient(create_app(Settings(data_dir=tmp_path, disk_floor_bytes=0))) as client:
        client.get("/healthz")
        text = client.get("/metrics").text
    families = {family.name for family in text_string_to_metric_families(text)}
    assert {re.sub(r"_(total|bucket|count|sum)$", "", name) for name in asked} <= families
    assert len(panels) == 10


def test_log_when_json_then_a_line_is_an_object_with_the_ids_that_are_bound(
    capsys: pytest.CaptureFixture[str],
) -> None:
    before = logging.getLogger().handlers[:]
    try:
        logs.configure(Settings(log_format="json"))
        with logs.bind(search_id="srh_1"), logs.bind(trial=7):
            logging.getLogger("tightfit.worker").info("trial done", extra={"seconds": 0.5})
        logging.getLogger("tightfit.worker").info("outside")
    finally:
        logging.basicConfig(handlers=before, force=True)
    inside, outside = (json.loads(line) for line in capsys.readouterr().err.splitlines())
    assert (inside["search_id"], inside["trial"], inside["seconds"], inside["level"]) == ("srh_1", 7, 0.5, "info")
    assert inside["event"] == "trial done" and "search_id" not in outside


def test_log_when_for_people_then_a_line_with_ids_and_a_traceback_without_values(
    capsys: pytest.CaptureFixture[str],
) -> None:
    before = logging.getLogger().handlers[:]
    token = "tf_" + "secret" * 3  # what a traceback with values would show
    try:
        logs.configure(Settings())
        try:
            raise LookupError(f"{len(token)} characters")
        except LookupError:
            with logs.bind(request_id="r1"):
                logging.getLogger("tightfit.api").exception("request %s", 7, extra={"route": "/x"})
        logging.getLogger("tightfit.api").warning("outside")
    finally:
        logging.basicConfig(handlers=before, force=True)
    first, *middle, last, outside = capsys.readouterr().err.splitlines()
    words = first.split()
    assert words[1:] == ["[error", "]", "request", "7", "[tightfit.api]", "request_id=r1", "route=/x"]
    assert middle[0].startswith("Traceback") and last == "LookupError: 21 characters"
    assert token not in "\n".join(middle) and "request_id" not in outside

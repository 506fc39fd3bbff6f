"""tightfit agents, agent and device calibrate, against the real application over HTTP (no worker)."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
import uvicorn
from typer.testing import CliRunner

from app.agents import enrol
from app.cli import app
from app.commands.calibrate import draw, follow
from app.main import create_app
from app.settings import Settings
from app.store import measuring
from app.store.tables import Calibration
from tests.app.web.test_pages import seed

REPORT = {
    "all": {"networks": 24, "before": 1.25, "after": 0.061},
    "float": {"networks": 6, "before": 0.5, "after": None},
}


@pytest.fixture
def run(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Run the command line on a service of its own; `run.service` is what its verbs work with."""
    application = create_app(Settings(data_dir=tmp_path_factory.mktemp("service"), disk_floor_bytes=0))
    server = uvicorn.Server(uvicorn.Config(application, host="127.0.0.1", port=0, log_level="warning"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        assert thread.is_alive()
        time.sleep(0.02)
    monkeypatch.setenv("TIGHTFIT_URL", f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}")
    monkeypatch.setenv("TIGHTFIT_KEY", application.state.settings.key_file.read_text().strip())

    def call(*arguments: str) -> Any:
        return CliRunner().invoke(app, list(arguments))

    call.service = application.state.service  # type: ignore[attr-defined]
    yield call
    server.should_exit = True
    thread.join(10)


def test_agents_when_enrolled_listed_and_removed_then_each_is_told(run: Any) -> None:
    made = json.loads(run("agents", "enrol", "--json").stdout)
    assert made["command"].endswith(f"--code {made['code']}")
    assert json.loads(run("agents", "list", "--json").stdout) == []
    row, _ = enrol(run.service, made["code"], "board", {"processor": "Cortex-A76", "onnxruntime": "1.23"})
    assert "Cortex-A76" in run("agents", "list").stdout
    assert json.loads(run("agents", "remove", "board", "--json").stdout) == {"id": row.id, "removed": True}
    assert json.loads(run("agents", "list", "--json").stdout) == []


def test_calibrate_when_not_waited_for_then_queued_with_the_newest_networks(run: Any) -> None:
    with run.service.database.writing() as session:
        seed(session)
    made = json.loads(run("device", "calibrate", "onnxruntime-cpu", "--no-wait", "--json").stdout)
    assert (made["state"], made["device"], len(made["model_ids"])) == ("queued", "onnxruntime-cpu", 1)


def test_calibrate_when_the_device_is_elsewhere_and_no_agent_is_named_then_refused(run: Any) -> None:
    with run.service.database.writing() as session:
        seed(session)
    answer = run("device", "calibrate", "generic-npu", "--json")
    assert (answer.exit_code, json.loads(answer.stdout)["problem"]["slug"]) == (1, "agent-required")


def test_calibrate_when_it_ends_cancelled_then_the_exit_code_says_so(run: Any) -> None:
    with run.service.database.writing() as session:
        seed(session)

    def cancel() -> None:
        while True:
            time.sleep(0.05)
            with run.service.database.writing() as session:
                row = session.query(Calibration).one_or_none()
                if row is not None:
                    measuring.conclude(row, "cancelled")
                    return

    thread = threading.Thread(target=cancel)
    thread.start()
    answer = run("device", "calibrate", "onnxruntime-cpu", "--json")
    thread.join()
    assert (answer.exit_code, json.loads(answer.stdout)["state"]) == (1, "cancelled")


def test_draw_when_done_then_errors_before_and_after_by_class() -> None:
    from rich.console import Console

    console = Console(width=100, record=True, quiet=False)
    made = {"id": "cal_1", "device": "board", "state": "done", "problem": None, "report": REPORT, "device_id": "dev_2"}
    draw(console, {**made, "table": {"coefficients": {"a": {}, "b": {}}}})
    text = console.export_text()
    assert "125.0%" in text and "6.1%" in text and "2 classes" in text and "dev_2" in text


def test_follow_when_it_has_ended_then_nothing_is_asked() -> None:
    seen: list[Any] = []
    assert follow(None, {"state": "failed"}, seen.append) == {"state": "failed"}  # type: ignore[arg-type]
    assert seen == []

"""The command line and the client against the real application, served over HTTP (no worker)."""

from __future__ import annotations

import json
import re
import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import uvicorn
from fastapi import FastAPI
from safetensors.numpy import save
from typer.testing import CliRunner

from app.cli import app
from app.client import ApiProblem, Client
from app.domain.words import amount
from app.main import create_app
from app.settings import Settings
from app.store import tables
from tests.app.web.test_pages import REPORT, seed, seed_report
from worker.graph.errors import unsupported
from worker.job import problem

PROFILE = Path(__file__).resolve().parents[2] / "examples" / "device.json"


@pytest.fixture(scope="module")
def application(tmp_path_factory: pytest.TempPathFactory) -> FastAPI:
    return create_app(Settings(data_dir=tmp_path_factory.mktemp("service"), disk_floor_bytes=0))


@pytest.fixture(scope="module")
def client(application: FastAPI) -> Iterator[Client]:
    settings = application.state.settings
    server = uvicorn.Server(uvicorn.Config(application, host="127.0.0.1", port=0, log_level="warning"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        assert thread.is_alive()
        time.sleep(0.02)
    port = server.servers[0].sockets[0].getsockname()[1]
    yield Client(f"http://127.0.0.1:{port}", settings.key_file.read_text().strip())
    server.should_exit = True
    thread.join(10)


@pytest.fixture
def service(client: Client, application: FastAPI) -> Any:
    return application.state.service


@pytest.fixture
def run(client: Client, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setenv("TIGHTFIT_URL", client.url)
    monkeypatch.setenv("TIGHTFIT_KEY", client._http.headers["authorization"].removeprefix("Bearer "))
    return lambda *arguments: CliRunner().invoke(app, [*arguments, "--json"])


def test_device_when_pushed_again_then_only_a_change_makes_a_revision(run: Any, tmp_path: Path) -> None:
    built_in = {item["id"] for item in json.loads(run("device", "list").stdout)}
    assert {"onnxruntime-cpu", "generic-npu"} <= built_in
    changed = tmp_path / "changed.json"
    changed.write_text(PROFILE.read_text().replace('per_inference_us": 5.0', 'per_inference_us": 6.0'))
    files = (PROFILE, PROFILE, changed)
    revisions = [json.loads(run("device", "push", str(file)).stdout)["revision"] for file in files]
    assert revisions == [1, 1, 2]
    assert json.loads(run("device", "show", "demo-npu").stdout)["revision"] == 2
    first = json.loads(run("device", "show", "demo-npu@1").stdout)
    assert (first["revision"], first["profile"]["overheads"]["per_inference_us"]) == (1, 5.0)


def test_device_list_when_filtered_then_leaves_those_that_fit(run: Any) -> None:
    def names(*options: str) -> set[str]:
        return {item["name"] for item in json.loads(run("device", "list", *options).stdout)}

    assert names("--unit", "mcu") == {"esp32s3", "stm32h7"}
    assert names("--bits", "2") >= {"imx500", "apple-a17-ane", "generic-npu"}
    assert "ethos-u55-128" not in names("--bits", "2")
    assert names("--max-memory", "384k") == {"ethos-u55-128", "ethos-u65-256", "demo-npu"} & names()
    assert names("--unit", "gpu", "--max-memory", "16GiB") == {"jetson-orin-nano", "nvidia-t4"}
    assert names("--unit", "fpga") == set()
    assert run("device", "list", "--max-memory", "much").exit_code == 2


def test_device_show_when_read_by_people_then_names_rules_figures_and_sources(client: Client, run: Any) -> None:
    shown = CliRunner().invoke(app, ["device", "show", "coral-edgetpu@1"], env={"COLUMNS": "200"})
    assert shown.exit_code == 0, shown.output
    text = shown.stdout
    assert "coral-edgetpu@1" in text
    assert "cache 7.24 MB at 50 GB/s" in text
    assert re.search(r"w8 +a8 +a8 +a8", text)
    assert re.search(r"/compute/0/gmacs +2000 +high +coral.ai technology page", text)
    assert re.search(r"/memory/weight_store/gbps +0.28 +medium +USB 3", text)
    assert "edgetpu#60: weight cache (confidence: high)" in text


def test_device_new_when_printed_then_ten_lines_that_can_be_pushed(client: Client, run: Any, tmp_path: Path) -> None:
    template = CliRunner().invoke(app, ["device", "new", "my-new-board"]).stdout
    assert len(template.splitlines()) == 10
    (tmp_path / "board.yaml").write_text(template)
    pushed = json.loads(run("device", "push", str(tmp_path / "board.yaml")).stdout)
    assert (pushed["name"], pushed["revision"]) == ("my-new-board", 1)
    record = json.loads(run("device", "new", "my-new-board").stdout)
    (tmp_path / "board.json").write_text(json.dumps(record))
    assert json.loads(run("device", "push", str(tmp_path / "board.json")).stdout)["id"] == pushed["id"]
    assert run("device", "new", "My Board").exit_code == 2


def test_device_when_a_figure_is_illegal_then_the_field_is_pointed_at(run: Any, tmp_path: Path) -> None:
    record = json.loads(PROFILE.read_text())
    record["compute"][0]["gmacs"] = -4
    (tmp_path / "bad.json").write_text(json.dumps(record))
    result = run("device", "push", str(tmp_path / "bad.json"))
    problem = json.loads(result.stdout)["problem"]
    assert (result.exit_code, problem["slug"]) == (1, "invalid-device-profile")
    assert problem["errors"][0]["pointer"] == "/compute/0/gmacs"


def test_key_when_revoked_then_opens_nothing_any_more(run: Any, client: Client) -> None:
    made = json.loads(run("key", "create", "--name", "ci", "--expires", "90d").stdout)
    assert 89 <= (datetime.fromisoformat(made["expires_at"]) - datetime.now(UTC)).days <= 90
    guest = Client(client.url, made["key"])
    assert list(guest.items("/v1/searches")) == []
    assert run("key", "revoke", made["id"]).exit_code == 0
    with pytest.raises(ApiProblem) as caught:
        guest.get("/v1/searches")
    assert (caught.value.slug, caught.value.status) == ("unauthenticated", 401)


def test_audit_when_an_owners_key_acted_then_shown_and_its_events_followed(run: Any, client: Client) -> None:
    made = json.loads(run("key", "create", "--name", "ci", "--owner", "vision").stdout)
    guest = Client(client.url, made["key"])
    model = guest.push_model(b"\x08\x0e" + b"v" * 50, "net", wait=False)["id"]
    (entry,) = json.loads(run("audit", "--by", made["id"]).stdout)
    assert (entry["action"], entry["object_id"], entry["owner_id"]) == ("model.created", model, "vision")
    assert [item["action"] for item in json.loads(run("audit", "--object", made["id"]).stdout)] == ["key.created"]
    followed = guest.events()
    assert [(item["seq"], item["kind"], item["id"]) for item in (next(followed), next(followed))] == [
        (1, "key.created", made["id"]),
        (2, "model.created", model),
    ]
    followed.close()


def test_model_when_the_content_is_no_network_then_is_refused_at_once(run: Any, tmp_path: Path) -> None:
    (tmp_path / "net.onnx").write_bytes(b"garbage")
    result = run("model", "push", str(tmp_path / "net.onnx"))
    assert result.exit_code == 1
    assert json.loads(result.stdout)["problem"]["slug"] == "unrecognised-format"


def test_dataset_when_no_worker_runs_then_waiting_ends_with_advice(client: Client) -> None:
    arrays = {"x": np.zeros((4, 1, 8, 8), np.uint8), "y": np.array([0, 1, 0, 1])}
    dataset = client.push_dataset(arrays, "tiny", {"scale": 0.5, "layout": "NCHW"}, wait=False)
    assert (dataset["state"], dataset["spec"]["scale"]) == ("inspecting", 0.5)
    with pytest.raises(TimeoutError, match="is a worker running"):
        client.wait_ready("datasets", dataset["id"], timeout_s=0.2)


def test_items_when_there_are_more_than_a_page_then_every_one_comes(client: Client) -> None:
    everything = list(client.items("/v1/devices"))
    by_two = list(client.items("/v1/devices", limit=2))
    assert len(everything) >= 4
    assert [item["id"] for item in by_two] == [item["id"] for item in everything]


def test_search_when_the_model_is_unknown_then_leaves_with_1(run: Any) -> None:
    result = run("search", "run", "--model", "absent", "--data", "d", "--device", "generic-npu", "--limit", "bops<=1/8")
    assert result.exit_code == 1
    assert json.loads(result.stdout)["problem"]["slug"] == "not-found"


def a_model(service: Any, name: str, refused: Any = None) -> tuple[str, Any]:
    """Put a model into the store as a worker would have left it, read or refused; return its id and picture."""
    from app.domain import ids
    from app.store.blobs import record
    from app.store.tables import Model
    from tests.worker.search.pictures import resnet

    key, graph, sha = ids.new_id("model"), resnet().to_json(), service.blobs.put(name.encode())
    state = "rejected" if refused else "ready"
    with service.database.writing() as session:
        record(session, sha, len(name))
        row = Model(id=key, name=name, format="onnx", blob_sha=sha, bytes=len(name), state=state, problem=refused)
        row.graph = None if refused else graph
        session.add(row)
    return key, graph


def ready_uploads(client: Client, service: Any) -> tuple[str, str]:
    """Put a model and a dataset into the store as a worker would have left them; return their ids."""
    from app.store.blobs import record
    from app.store.tables import Dataset, Model
    from tests.worker.search.pictures import resnet

    graph = resnet()
    sha = service.blobs.put(b"a network of a schedule")
    info = {"rows": 9, "shape": list(graph.input_shape), "dtype": "uint8", "has_labels": True, "classes": 10}
    with service.database.writing() as session:
        record(session, sha, 23)
        session.add(
            Model(id="mdl_s", name="net", format="onnx", blob_sha=sha, bytes=23, state="ready", graph=graph.to_json())
        )
        session.add(Dataset(id="dst_s", name="set", blob_sha=sha, bytes=23, state="ready", spec={}, info=info))
    return "mdl_s", "dst_s"


def test_schedule_when_created_by_names_then_listed_shown_and_deleted(run: Any, client: Client, service: Any) -> None:
    model, data = ready_uploads(client, service)
    options = [
        "--model",
        "net",
        "--data",
        "set",
        "--device",
        "generic-npu",
        "--limit",
        "bops<=1/8",
        "--name",
        "nightly",
    ]
    made = json.loads(run("schedule", "create", *options, "--cron", "0 2 * * *", "--timezone", "Europe/Berlin").stdout)
    assert (made["search"]["model_id"], made["search"]["dataset"]) == (model, {"all": data})
    assert (made["cron"], made["timezone"], made["last_fired_at"]) == ("0 2 * * *", "Europe/Berlin", None)
    assert [item["id"] for item in json.loads(run("schedule", "list").stdout)] == [made["id"]]
    assert json.loads(run("schedule", "show", "nightly").stdout)["id"] == made["id"]
    assert run("schedule", "delete", "nightly").exit_code == 0
    assert json.loads(run("schedule", "list").stdout) == []


def as_a_worker(service: Any, base_id: str, fields: dict[str, Any]) -> threading.Thread:
    """Leave the next weights version of a model as a worker would."""
    from app.store import query
    from app.store.tables import Model

    def work() -> None:
        for _ in range(400):
            with service.database.writing() as session:
                for row in query.page(session, Model, 5, base_id=base_id, state="inspecting"):
                    for name, value in fields.items():
                        setattr(row, name, value)
                    return
            time.sleep(0.05)

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    return thread


def test_weights_when_pushed_by_the_base_s_name_then_a_new_model_that_show_leads_back_from(
    run: Any, client: Client, service: Any, tmp_path: Path
) -> None:
    base, graph = a_model(service, "retrained")
    file = tmp_path / "new.safetensors"
    file.write_bytes(save({"w": np.ones(3, np.float32)}))
    worker = as_a_worker(service, base, {"state": "ready", "graph": graph})
    made = json.loads(run("model", "weights", "retrained", str(file)).stdout)
    worker.join(10)
    assert (made["base_id"], made["name"], made["state"]) == (base, "retrained", "ready")
    assert made["weights_bytes"] == file.stat().st_size
    shown = CliRunner().invoke(app, ["model", "show", made["id"]], env={"COLUMNS": "200"}).stdout
    assert f"weights version of {base}" in shown
    listed = CliRunner().invoke(app, ["model", "list"], env={"COLUMNS": "200"}).stdout.splitlines()
    assert [line.split()[-1] for line in listed if line.startswith(made["id"])] == [base]
    assert json.loads(run("model", "show", "retrained").stdout)["id"] == made["id"]  # the name leads to the newest


def test_weights_when_the_names_are_others_then_leaves_with_1_and_tells_each(
    run: Any, service: Any, tmp_path: Path
) -> None:
    base, _ = a_model(service, "mismatched")
    file = tmp_path / "new.safetensors"
    file.write_bytes(save({"w": np.ones(3, np.float32)}))
    errors = [{"pointer": "/weights/stem.weight", "code": "missing", "detail": "missing"}]
    problem = {"type": "/problems/weights-mismatch", "status": 422, "detail": "they don't fit", "errors": errors}
    as_a_worker(service, base, {"state": "rejected", "problem": problem})
    result = run("model", "weights", base, str(file))
    found = json.loads(result.stdout)["problem"]
    assert (result.exit_code, found["slug"], found["errors"]) == (1, "weights-mismatch", errors)
    as_a_worker(service, base, {"state": "rejected", "problem": problem})
    plain = CliRunner().invoke(app, ["model", "weights", base, str(file)])
    assert plain.exit_code == 1
    assert plain.stderr.splitlines()[-2:] == ["weights-mismatch they don't fit", "  /weights/stem.weight: missing"]


def test_model_when_shown_then_each_group_names_its_layers_and_why_it_is_frozen(run: Any, service: Any) -> None:
    key, graph = a_model(service, "grouped")
    shown = CliRunner().invoke(app, ["model", "show", key], env={"COLUMNS": "400"}).stdout
    lines = shown[shown.index("Channel groups") :].splitlines()
    assert lines[1].split() == ["group", "channels", "producers", "consumers", "state"]
    assert len(graph["groups"]) == len(lines) - 2
    for line, group in zip(lines[2:], graph["groups"], strict=True):
        producers, consumers = (", ".join(group[side]) or "–" for side in ("producers", "consumers"))
        state = f"frozen: {group['frozen']}" if group["frozen"] else "prunable"
        assert [cell.strip() for cell in re.split(r"\s{2,}", line.strip())] == [
            group["id"], str(group["channels"]), producers, consumers, state,
        ]  # fmt: skip
    assert sum("frozen: " in line for line in lines) == sum(bool(group["frozen"]) for group in graph["groups"]) > 0


def test_model_when_its_operators_are_not_read_then_show_tells_type_count_and_nodes(run: Any, service: Any) -> None:
    refusal = unsupported({"NonMaxSuppression": 2, "Loop": 1}, [("nms_1", "NonMaxSuppression"), ("a", "Loop")])
    key, _ = a_model(service, "detector", problem(refusal.slug, refusal.detail, refusal.errors))
    shown = CliRunner().invoke(app, ["model", "show", key], env={"COLUMNS": "200"}).stdout
    assert "unsupported-operator" in shown
    assert "Loop (1x), NonMaxSuppression (2x)" in shown
    assert "/graph/nms_1: NonMaxSuppression" in shown and "/graph/a: Loop" in shown
    told = json.loads(run("model", "show", key).stdout)
    assert (told["state"], told["problem"]["errors"]) == ("rejected", refusal.errors)


def test_schedule_when_the_cron_expression_is_wrong_then_refused_by_name(run: Any) -> None:
    options = ["--model", "net", "--data", "set", "--device", "generic-npu", "--limit", "bops<=1/8"]
    result = run("schedule", "create", *options, "--cron", "61 * * * *")
    assert (result.exit_code, json.loads(result.stdout)["problem"]["slug"]) == (1, "invalid-schedule")


def test_candidate_why_when_asked_then_verdict_operations_and_savings(run: Any, service: Any) -> None:
    with service.database.writing() as session:
        seed(session)
    told = json.loads(run("candidate", "why", "cnd_1").stdout)
    assert told["bound"] == "overhead"
    assert {op["name"] for op in told["operations"]} == {"stem", "mean", "head"}
    assert sum(told["parts"].values()) == pytest.approx(told["latency_ms"])
    said = CliRunner().invoke(app, ["candidate", "why", "cnd_1", "--most", "1"]).stdout
    assert "of its time is overhead" in " ".join(said.split())
    for change in told["changes"]:
        assert f"saves {amount('latency_ms', change['saving_ms'])}: {change['text'][:20]}" in said


def test_candidate_report_when_asked_then_one_file_is_written_and_without_an_export_it_says_what_to_do(
    run: Any, service: Any, tmp_path: Path
) -> None:
    with service.database.writing() as session:
        if session.get(tables.Candidate, "cnd_1") is None:
            seed(session)
    missing = json.loads(run("candidate", "report", "cnd_1").stdout)["problem"]
    assert (missing["slug"], missing["detail"][-31:]) == ("not-found", "tightfit candidate export cnd_1")
    seed_report(service)
    told = json.loads(run("candidate", "report", "cnd_1", "--out", str(tmp_path / "why.html")).stdout)
    assert (told["kind"], told["path"]) == ("report-html", str(tmp_path / "why.html"))
    assert (tmp_path / "why.html").read_bytes() == REPORT

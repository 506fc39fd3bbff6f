"""The laws every route keeps: keys, problems, paging, devices, schedules, health."""

from __future__ import annotations

import copy
import json
import stat
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient

from app import actions
from app.actions import Service
from app.problems import PROBLEMS

Json = dict[str, Any]
ROOT = Path(__file__).resolve().parents[3]


@pytest.mark.fault(21)
def test_key_when_absent_garbage_or_revoked_then_one_and_the_same_401(client: TestClient, service: Service) -> None:
    made = client.post("/v1/keys", json={"name": "ci"}).json()
    assert client.delete(f"/v1/keys/{made['id']}").status_code == 204
    answers = [client.get("/v1/models", headers={"Authorization": f"Bearer {key}"}) for key in ("tf_x_y", made["key"])]
    for answer in answers:
        assert answer.status_code == 401
        assert answer.headers["www-authenticate"] == "Bearer"
        assert answer.json()["type"] == "/problems/unauthenticated"
    assert answers[0].json()["detail"] == answers[1].json()["detail"]


def test_first_key_when_the_service_starts_then_only_its_owner_can_read_the_file(data_folder: Path) -> None:
    assert stat.S_IMODE((data_folder / "api_key").stat().st_mode) == 0o600


@pytest.mark.fault(22)
def test_key_when_it_lacks_a_scope_then_refused_naming_it(client: TestClient) -> None:
    made = client.post("/v1/keys", json={"name": "reader", "scopes": ["artefacts:read"]}).json()
    answer = client.post("/v1/keys", json={"name": "x"}, headers={"Authorization": f"Bearer {made['key']}"})
    assert (answer.status_code, answer.json()["type"]) == (403, "/problems/missing-scope")
    assert answer.json()["scope"] == "admin"


@pytest.mark.parametrize("path", ["/v1/models/x", "/v1/searches/../x", "/v1/nothing", "/v1/candidates/" + "a" * 4000])
def test_address_when_unknown_then_a_typed_404(client: TestClient, path: str) -> None:
    answer = client.get(path)
    assert (answer.status_code, answer.json()["type"]) == (404, "/problems/not-found")


@pytest.mark.fault(15)
def test_method_when_wrong_then_405_with_allow(client: TestClient) -> None:
    answer = client.put("/v1/models")
    assert answer.status_code == 405
    assert answer.json()["type"] == "/problems/method-not-allowed"
    assert answer.headers["allow"] == "GET, POST"
    assert client.post("/v1/models/x").headers["allow"] == "DELETE, GET, PATCH"


@pytest.mark.fault(1, 2, 3, 6)
@pytest.mark.parametrize(
    ("body", "slug"),
    [
        (b"{", "malformed-json"),
        (b"\xff\xfe{\x00}\x00", "malformed-json"),
        (b"\xef\xbb\xbf{}", "malformed-json"),
        (b"[" * 10_000, "malformed-json"),
        (b'{"a": 1' + b"0" * 5000 + b"}", "malformed-json"),
        (b'{"name": "a", "name": "b"}', "duplicate-json-key"),
        (b'{"name": NaN}', "invalid-number"),
        (b'{"name": 1e400}', "invalid-number"),
        (b'{"name": "' + b"x" * (1 << 20) + b'"}', "body-too-large"),
    ],
)
def test_json_when_not_strict_then_refused_by_name(client: TestClient, body: bytes, slug: str) -> None:
    answer = client.post("/v1/keys", content=body, headers={"Content-Type": "application/json"})
    assert answer.json()["type"] == f"/problems/{slug}"
    assert answer.status_code == PROBLEMS[slug].status


@pytest.mark.fault(7)
def test_body_when_not_json_then_415(client: TestClient) -> None:
    answer = client.post("/v1/keys", content=b"{}", headers={"Content-Type": "text/plain"})
    assert (answer.status_code, answer.json()["type"]) == (415, "/problems/unsupported-media-type")


def test_list_when_paged_then_every_row_comes_once(client: TestClient) -> None:
    made = {client.post("/v1/models", content=b"\x08\x0e" + bytes([i]) * 40).json()["id"] for i in range(5)}
    seen: list[str] = []
    cursor = None
    while True:
        params = {"limit": 2, **({"cursor": cursor} if cursor else {})}
        page = client.get("/v1/models", params=params).json()
        seen += [item["id"] for item in page["items"]]
        cursor = page["next_cursor"]
        if cursor is None:
            break
    assert made <= set(seen) and len(seen) == len(set(seen))


def test_cursor_when_tampered_then_refused(client: TestClient) -> None:
    assert client.get("/v1/models?cursor=mdl_1.00").json()["type"] == "/problems/invalid-cursor"
    assert client.get("/v1/models?limit=0").json()["type"] == "/problems/invalid-limit"
    assert client.get("/v1/models?limit=1000000000").json()["type"] == "/problems/invalid-limit"


def profile(client: TestClient) -> Json:
    body: Json = copy.deepcopy(client.get("/v1/devices/generic-npu").json()["profile"])
    return {**body, "name": "mine"}


def test_device_when_pushed_again_then_only_a_change_makes_a_revision(client: TestClient) -> None:
    body = profile(client)
    first, same = (client.post("/v1/devices", json=body) for _ in range(2))
    assert (first.status_code, same.status_code) == (201, 200)
    assert same.json() == first.json()
    body["memory"]["weight_store"]["gbps"] = 4.0
    second = client.post("/v1/devices", json=body).json()
    assert (first.json()["revision"], second["revision"]) == (1, 2)
    fresh = {"pairs": 0, "bias": None, "p90": None, "verdict": "unknown", "interval": 0.5}
    assert client.get("/v1/devices/mine").json() == {**second, "accuracy": fresh}
    assert client.get("/v1/devices/mine@1").json() == {**first.json(), "accuracy": fresh}
    assert client.get("/v1/devices/mine@2").json() == {**second, "accuracy": fresh}
    assert [item["revision"] for item in client.get("/v1/devices?name=mine").json()["items"]] == [2, 1]
    for unknown in ("mine@3", "mine@", "mine@x", "mine@01x", "mine@99999999999", "@1", "generic-npu@2"):
        assert client.get(f"/v1/devices/{unknown}").status_code == 404, unknown


def test_device_when_pushed_as_yaml_then_is_what_json_would_be(client: TestClient) -> None:
    text = """
name: yaml-board
compute: [{w: 8, a: 8, gmacs: 4}]
memory: {activation_pool: {bytes: 262144, gbps: 2.0}, weight_store: {gbps: 0.4}}
rules: {pairs: {default: [[8, 8], [4, 8]]}, storage_bits: {4: 8}}
"""
    headers = {"Content-Type": "application/yaml; charset=utf-8"}
    answer = client.post("/v1/devices", content=text, headers=headers)
    assert answer.status_code == 201, answer.text
    assert answer.json()["profile"]["rules"]["storage_bits"] == {"4": 8}
    assert client.post("/v1/devices", json=answer.json()["profile"]).json() == answer.json()


@pytest.mark.parametrize(
    ("text", "slug"),
    [
        (b"a: &x [1]\nb: *x", "malformed-yaml"),
        (b"a: 1\na: 2", "malformed-yaml"),
        (b"a: [", "malformed-yaml"),
        (b"\xff", "malformed-yaml"),
        (b"a: 2026-01-01", "malformed-yaml"),
        (b"a: !!python/object:os.system x", "malformed-yaml"),
        (b"[" * 3000, "malformed-yaml"),
        (b"[" * 100 + b"]" * 100, "malformed-json"),
        (b"a: .nan", "invalid-number"),
        (b"#" * 70_000, "body-too-large"),
        (b"name: x", "invalid-device-profile"),
        (b"", "invalid-device-profile"),
    ],
    ids=lambda value: str(value)[:20],
)
def test_yaml_when_hostile_or_wrong_then_refused(client: TestClient, text: bytes, slug: str) -> None:
    answer = client.post("/v1/devices", content=text, headers={"Content-Type": "application/yaml"})
    assert answer.json()["type"] == f"/problems/{slug}"


def test_builtin_device_when_its_figures_change_then_the_former_revision_stays(
    client: TestClient, service: Service
) -> None:
    before = client.get("/v1/devices/imx500").json()
    record = copy.deepcopy(before["profile"])
    record["compute"][0]["gmacs"] = 1234.0
    for _ in range(2):
        actions.ensure_devices(service, [record])
    after = client.get("/v1/devices/imx500").json()
    assert (after["revision"], after["builtin"], after["profile"]) == (2, True, record)
    assert client.get("/v1/devices/imx500@1").json() == before
    assert client.get(f"/v1/devices/{after['id']}").json() == after


@pytest.mark.parametrize("page", ["README.md", "docs/devices.md"])
def test_ten_line_profile_when_pushed_as_printed_then_a_search_can_be_planned_on_it(
    client: TestClient, request_body: Json, page: str
) -> None:
    block = (ROOT / page).read_text().split("```yaml\nname: ")[1].split("```")[0]
    text = "name: " + block
    assert len(text.splitlines()) == 10
    pushed = client.post("/v1/devices", content=text, headers={"Content-Type": "application/yaml"})
    assert (pushed.json()["name"], pushed.json()["revision"]) == ("my-board", 1), pushed.text
    limits = [{"metric": "latency_ms", "relative": 0.5}, {"metric": "bops", "relative": 0.5}]
    wanted = {**request_body, "device_id": "my-board@1", "limits": limits}
    plan = client.post("/v1/searches/preflight", json=wanted)
    assert plan.status_code == 200, plan.text
    assert plan.json()["feasible"] is True


def test_device_when_its_text_is_half_a_surrogate_then_refused_not_a_fault(client: TestClient) -> None:
    body = {**profile(client), "title": "\ud800"}
    answer = client.post("/v1/devices", content=json.dumps(body), headers={"Content-Type": "application/json"})
    assert (answer.status_code, answer.json()["errors"][0]["pointer"]) == (422, "/title")


def test_search_when_a_revision_is_named_then_counts_on_that_revision(client: TestClient, request_body: Json) -> None:
    body = {**profile(client), "name": "slow"}
    first = client.post("/v1/devices", json=body).json()
    body["overheads"]["per_inference_us"] = 5000.0
    client.post("/v1/devices", json=body)
    asked = [
        client.post("/v1/searches/preflight", json={**request_body, "device_id": key}) for key in ("slow@1", "slow")
    ]
    assert [answer.status_code for answer in asked] == [200, 200], asked[0].text
    assert client.post("/v1/searches", json={**request_body, "device_id": "slow@1"}).json()["device_id"] == first["id"]


@pytest.mark.fault(59)
@pytest.mark.parametrize(
    ("path", "value", "pointer"),
    [
        (("rules", "pairs"), {}, "/rules/pairs"),
        (("rules", "pairs"), {"default": []}, "/rules/pairs/default"),
        (("rules", "pairs"), {"conv": [[8, 8]]}, "/rules/pairs"),
        (("rules", "pairs"), {"default": [[1, 64]]}, "/rules/pairs/default/0/0"),
        (("rules", "channel_multiple"), {"default": 0}, "/rules/channel_multiple/default"),
        (("compute",), [], "/compute"),
        (("compute", 0, "gmacs"), -1.0, "/compute/0/gmacs"),
        (("memory", "weight_store", "gbps"), 0, "/memory/weight_store/gbps"),
    ],
)
def test_device_when_a_field_is_illegal_then_refused_with_a_pointer(
    client: TestClient, path: tuple[Any, ...], value: Any, pointer: str
) -> None:
    body = profile(client)
    place: Any = body
    for step in path[:-1]:
        place = place[step]
    place[path[-1]] = value
    answer = client.post("/v1/devices", json=body)
    assert (answer.status_code, answer.json()["type"]) == (422, "/problems/invalid-device-profile")
    assert pointer in [error["pointer"] for error in answer.json()["errors"]]


def test_builtin_devices_when_listed_then_each_has_bits_sources_and_figures(client: TestClient) -> None:
    items = {item["id"]: item for item in client.get("/v1/devices?limit=200").json()["items"] if item["builtin"]}
    assert {"generic-npu", "onnxruntime-cpu", "ethos-u55-128", "esp32s3"} <= set(items)
    for item in items.values():
        assert item["profile"]["rules"]["pairs"] and item["profile"]["evidence"]["sources"]


def test_schedule_when_created_then_listed_and_deleted(client: TestClient, request_body: Json) -> None:
    body = {"name": "nightly", "cron": "0 2 * * *", "timezone": "Europe/Berlin", "search": request_body}
    made = client.post("/v1/schedules", json=body, headers={"Idempotency-Key": "nightly"})
    assert made.status_code == 201
    key = made.json()["id"]
    assert key in [item["id"] for item in client.get("/v1/schedules").json()["items"]]
    assert client.delete(f"/v1/schedules/{key}", headers={"If-Match": "*"}).status_code == 204
    assert client.get(f"/v1/schedules/{key}").status_code == 404


@pytest.mark.parametrize("change", [{"cron": "61 * * * *"}, {"cron": "every day"}, {"timezone": "Mars/Base"}])
def test_schedule_when_cron_or_zone_is_not_valid_then_refused(
    client: TestClient, request_body: Json, change: Json
) -> None:
    body = {"name": "x", "cron": "0 2 * * *", "timezone": "UTC", "search": request_body, **change}
    assert client.post("/v1/schedules", json=body).json()["type"] == "/problems/invalid-schedule"


def test_schedule_when_a_kill_left_it_out_of_the_engine_then_made_good_at_the_next_start(
    client: TestClient, service: Service, request_body: Json
) -> None:
    from app import actions, queue

    body = {"name": "x", "cron": "0 2 * * *", "timezone": "UTC", "search": request_body}
    key = client.post("/v1/schedules", json=body).json()["id"]
    assert key in queue.schedules(service.client)
    queue.remove_schedule(service.client, key)
    queue.put_schedule(service.client, "sch_orphan", "0 3 * * *", "UTC")
    actions.ensure_schedules(service)
    assert key in queue.schedules(service.client) and "sch_orphan" not in queue.schedules(service.client)


def test_schedule_when_fired_twice_while_its_search_runs_then_one_search(
    client: TestClient, service: Service, request_body: Json
) -> None:
    from app import actions

    body = {"name": "x", "cron": "0 2 * * *", "timezone": "UTC", "search": request_body}
    key = client.post("/v1/schedules", json=body).json()["id"]
    first = actions.fire_schedule(service, key)
    assert first is not None and actions.fire_schedule(service, key) is None
    assert client.get(f"/v1/searches/{first}").json()["schedule_id"] == key
    client.post(f"/v1/searches/{first}/cancel")
    assert actions.fire_schedule(service, key) is not None


def test_health_when_asked_then_says_what_holds(client: TestClient) -> None:
    assert client.get("/healthz").json()["status"] == "ok"
    ready = client.get("/readyz").json()
    assert (ready["database"], ready["schema"], ready["disk"], ready["workers"]) == (True, True, True, 0)
    figures = client.get("/metrics").text
    assert "tightfit_disk_free_bytes" in figures and "# TYPE tightfit_searches gauge" in figures


def test_problem_catalogue_when_compared_with_the_docs_then_complete() -> None:
    text = (ROOT / "docs" / "problems.md").read_text()
    rows = [line.split("|") for line in text.splitlines() if line.startswith("| `")]
    documented = {cells[1].strip(" `"): (int(cells[2]), cells[3].strip()) for cells in rows}
    assert documented == {slug: (kind.status, kind.meaning) for slug, kind in PROBLEMS.items()}


def test_problem_page_when_opened_then_explains(client: TestClient) -> None:
    answer = client.get("/problems/budget-unreachable")
    assert answer.status_code == 200 and "reachable" in answer.text

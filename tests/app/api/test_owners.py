"""What an owner makes is its alone: every address of the OpenAPI document, every list, every name in a request."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from fastapi.testclient import TestClient

from app.domain.ids import PREFIXES
from app.main import create_app
from app.settings import Settings
from app.store import timings
from app.store.tables import Blob, Search
from app.web.pages import router
from tests.app.api.owning import TUS, Owner, fill, owner, request
from tests.app.store.databases import postgres_url

Json = dict[str, Any]
ROOT = Path(__file__).resolve().parents[3]
PROFILE: Json = json.loads((ROOT / "examples" / "device.json").read_text())
DOCUMENT: Json = json.loads((ROOT / "docs" / "openapi.json").read_text())
OPERATIONS = [
    (method.upper(), path) for path, item in DOCUMENT["paths"].items() if path.startswith("/v1/") for method in item
]
WITH_ID = [(method, path) for method, path in OPERATIONS if "{" in path]
APART = ("/v1/workers", "/v1/events", "/v1/audit")
"""Lists of the service's own, and what tests/app/api/test_history.py looks at."""
LISTS = [path for method, path in OPERATIONS if method == "GET" and "{" not in path and path not in APART]
LIMITS = [{"metric": "bops", "relative": 0.5}]
SESSION = "a" * 32
ADMINS = ("DELETE /v1/keys/{id}", "GET /v1/keys")
"""What administrators alone may ask, whatever the id is."""
BODIES: dict[str, Json] = {
    "PATCH /v1/models/{id}": {"name": "mine now"},
    "PATCH /v1/datasets/{id}": {"name": "mine now"},
    "PATCH /v1/schedules/{id}": {"enabled": False},
    "POST /v1/searches/{id}/extend": {"trials": 100},
    "POST /v1/searches/{id}/priority": {"priority": 1},
    "POST /v1/searches/{id}/whatif": {"limits": LIMITS},
    "POST /v1/candidates/{id}/export": {},
    "POST /v1/agents/{id}/heartbeat": {"session": SESSION},
    "POST /v1/agents/{id}/jobs:pull": {"session": SESSION, "wait_s": 0},
    "POST /v1/agents/{id}/jobs/{job}/results": {"session": SESSION, "results": {}},
    "POST /v1/devices/{name}/calibrations": {"model_ids": ["mdl_1"], "agent_id": None},
}
"""A valid body of every operation with an id that takes JSON."""


@dataclass
class World:
    """Ant made everything there is, bee the same of its own; the administrator is a third owner."""

    ant: Owner
    bee: Owner
    admin: Owner


@pytest.fixture(scope="module", params=["sqlite", pytest.param("postgresql", marks=pytest.mark.postgres)])
def world(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    with nullcontext("") if request.param == "sqlite" else postgres_url() as url:
        settings = Settings(data_dir=tmp_path_factory.mktemp("owners"), database_url=url, disk_floor_bytes=0)
        with TestClient(create_app(settings)) as client:
            found = World(owner(client, "ant"), owner(client, "bee"), owner(client, "queen", ("admin",)))
            for who in (found.ant, found.bee):
                fill(who, PROFILE)
            yield found


def placed(path: str, made: dict[str, str], stranger: dict[str, str] | None = None) -> str:
    """Return an address with an owner's ids in it; `stranger` has the agent where only the job is another's."""
    noun = path.split("/")[2].split(":")[0]
    key = (stranger or made)[noun]
    names = {"id": key, "name": key, "job": made["measurements"], "item": "i0"}
    for name, value in names.items():
        path = path.replace(f"{{{name}}}", value)
    return path


def nobodys(made: dict[str, str]) -> dict[str, str]:
    """Return ids of the same form that nothing has."""
    return {noun: f"{key[:4]}{'0' * (len(key) - 4)}" for noun, key in made.items()}


def send(who: Owner, method: str, path: str, address: str) -> Any:
    """Send an operation as its owner would, to an address."""
    name, given = f"{method} {path}", {}
    operation = DOCUMENT["paths"][path][method.lower()]
    headers = {"If-Match": "*"}
    if "application/json" in (operation.get("requestBody") or {}).get("content", {}):
        given["json"] = BODIES[name]
    elif "requestBody" in operation:
        given["content"] = b"x" * 9
        headers["Content-Type"] = next(iter(operation["requestBody"]["content"]))
    if path.startswith("/v1/uploads"):
        headers.update(TUS, **{"Upload-Offset": "0"})
    if path.startswith("/v1/agents/{id}/"):
        headers["Authorization"] = f"Bearer {who.made['token']}"
    return who.ask(method, address, headers=headers, **given)


def told(answer: Any, address: str) -> tuple[int, Json]:
    """Return an answer's status and body, without what differs from request to request."""
    body = answer.json() if answer.content else {}
    body.pop("request_id", None)
    for part in address.split("/")[3:]:
        body = json.loads(json.dumps(body).replace(part.split(":")[0], "ID"))
    return answer.status_code, body


@pytest.mark.fault(23)
@pytest.mark.parametrize(("method", "path"), WITH_ID, ids=lambda value: str(value))
def test_address_when_its_id_is_another_owners_then_404_as_for_one_that_is_nobodys(
    world: World, method: str, path: str
) -> None:
    if path == "/v1/agents/{id}/jobs/{job}/items/{item}" or path.endswith("/results"):
        theirs = placed(path, world.ant.made, stranger=world.bee.made)
        missing = placed(path, nobodys(world.ant.made), stranger=world.bee.made)
    else:
        theirs, missing = placed(path, world.ant.made), placed(path, nobodys(world.ant.made))
    answers = [send(world.bee, method, path, address) for address in (theirs, missing)]
    expected = 403 if f"{method} {path}" in ADMINS else 404
    assert [answer.status_code for answer in answers] == [expected, expected], answers[0].text
    assert told(answers[0], theirs) == told(answers[1], missing)
    if expected == 404 and answers[0].content:
        assert answers[0].json()["type"] == "/problems/not-found"


@pytest.mark.fault(23)
@pytest.mark.parametrize("path", [path for method, path in WITH_ID if method == "GET"])
def test_address_when_its_id_is_the_owners_then_answered_to_it_and_to_administrators(world: World, path: str) -> None:
    if path.endswith(("/events", "/why")) or path.startswith("/v1/agents/{id}/"):
        pytest.skip("answers with a stream, or needs what a worker made")
    for who in (world.ant, world.admin):
        assert send(who, "GET", path, placed(path, world.ant.made)).status_code == 200


@pytest.mark.fault(23)
@pytest.mark.parametrize("path", LISTS)
def test_list_when_asked_then_the_owners_alone_and_administrators_see_all(world: World, path: str) -> None:
    noun = path.split("/")[2]
    if f"GET {path}" in ADMINS:
        assert world.bee.ask("GET", path).status_code == 403
    else:
        pages = {who.name: who.ask("GET", path, params={"limit": 200}).text for who in (world.ant, world.bee)}
        assert world.ant.made[noun] in pages["ant"] and world.bee.made[noun] in pages["bee"]
        for key in (*world.ant.made.values(), '"ant"'):
            assert key not in pages["bee"]
    everything = world.admin.ask("GET", path, params={"limit": 200}).text
    assert world.ant.made[noun] in everything and world.bee.made[noun] in everything
    for name, there in (("me", False), ("ant", True)):
        some = world.admin.ask("GET", path, params={"limit": 200, "owner": name}).text
        assert (world.ant.made[noun] in some, world.bee.made[noun] in some) == (there, False)


def test_list_when_another_owner_is_named_then_404_whether_there_is_one_or_not(world: World) -> None:
    answers = [world.bee.ask("GET", "/v1/models", params={"owner": name}) for name in ("ant", "nix")]
    assert [answer.status_code for answer in answers] == [404, 404]
    assert answers[0].json()["detail"].replace("ant", "nix") == answers[1].json()["detail"]
    assert world.bee.ask("GET", "/v1/models", params={"owner": "bee"}).status_code == 200


@pytest.mark.fault(23)
def test_page_when_its_id_is_another_owners_then_404(world: World) -> None:
    pages = [str(route.path) for route in router.routes if "{" in route.path]  # type: ignore[attr-defined]
    assert len(pages) >= 14
    for path in pages:
        noun = path.removeprefix("/web").split("/")[1]
        address = path.replace("{id}", world.ant.made[noun]).replace("{name}", world.ant.made[noun])
        assert world.bee.ask("GET", address).status_code == 404, path
    for noun in ("models", "datasets", "devices", "searches", "fleets", "schedules"):
        shown = world.bee.ask("GET", f"/{noun}").text
        assert world.bee.made[noun] in shown and world.ant.made[noun] not in shown


@pytest.mark.parametrize("noun", ["models", "datasets", "searches", "fleets", "schedules"])
def test_list_page_when_rows_are_of_several_owners_then_an_administrator_sees_whose_they_are(
    world: World, noun: str
) -> None:
    told, own = (who.ask("GET", f"/{noun}").text for who in (world.admin, world.bee))
    assert "<th>Owner</th>" in told and "<td>ant</td>" in told and "<td>bee</td>" in told
    assert "<th>Owner</th>" not in own and "<td>bee</td>" not in own


@pytest.mark.fault(23)
@pytest.mark.parametrize("noun", ["model_id", "dataset", "device_id"])
@pytest.mark.parametrize("path", ["searches", "searches/preflight", "fleets", "schedules"])
def test_request_when_it_names_another_owners_then_refused_as_for_nobodys(world: World, noun: str, path: str) -> None:
    answers = []
    for made in (world.ant.made, nobodys(world.ant.made)):
        named = {"model_id": made["models"], "dataset": {"all": made["datasets"]}, "device_id": made["devices"]}
        body = {**request(world.bee), noun: named[noun]}
        if path == "fleets":
            body["members"] = [{"device_id": body.pop("device_id"), "limits": body.pop("limits")}]
        wanted = {"name": "s", "cron": "0 2 * * *", "search": body} if path == "schedules" else body
        answer = world.bee.ask("POST", f"/v1/{path}", json=wanted)
        text = json.dumps({**answer.json(), "request_id": ""})
        for key in made.values():
            text = text.replace(key, "ID")
        answers.append((answer.status_code, text))
    assert answers[0] == answers[1]
    assert answers[0][0] == 404


@pytest.mark.fault(23)
def test_measuring_when_it_names_another_owners_then_refused_as_for_nobodys(world: World) -> None:
    mine, theirs, none = world.bee.made, world.ant.made, nobodys(world.ant.made)
    for made in (theirs, none):
        wishes = [
            {"agent_id": made["agents"], "model_ids": [mine["models"]]},
            {"agent_id": mine["agents"], "model_ids": [made["models"]]},
            {"agent_id": mine["agents"], "artefact_ids": [made["artefacts"]]},
        ]
        for wish in wishes:
            assert world.bee.ask("POST", "/v1/measurements", json=wish).status_code == 404
        for wish in ({"agent_id": made["agents"]}, {"agent_id": mine["agents"], "model_ids": [made["models"]]}):
            body = {"model_ids": [mine["models"]], **wish}
            assert world.bee.ask("POST", "/v1/devices/generic-npu/calibrations", json=body).status_code == 404
        limits = [{"metric": "latency_ms", "relative": 0.5, "evidence": "measured"}]
        body = {**request(world.bee), "limits": limits, "agent": made["agents"]}
        answer = world.bee.ask("POST", "/v1/searches", json=body)
        assert answer.json()["type"] == "/problems/device-not-measurable"


@pytest.mark.fault(23, 53)
def test_upload_when_another_owner_has_the_same_bytes_then_one_file_and_nothing_of_it_is_told(world: World) -> None:
    network, service = b"\x08\x0e" + b"n" * 77, world.ant.http.app.state.service  # type: ignore[attr-defined]
    answers = [who.ask("POST", "/v1/models", content=network).json() for who in (world.ant, world.bee, world.ant)]
    assert [answer["deduplicated"] for answer in answers] == [False, False, True]
    assert [answer["owner_id"] for answer in answers] == ["ant", "bee", "ant"]
    with service.database.reading() as session:
        count = sa.select(sa.func.count()).where(Blob.sha256 == answers[0]["sha256"])
        assert session.scalar(count) == 1


def test_device_when_two_owners_give_one_name_then_each_has_its_own_revisions(world: World) -> None:
    for who, revision in ((world.ant, 1), (world.bee, 1), (world.bee, 2)):
        profile = {**PROFILE, "name": "shared-name", "notes": f"{who.name} {revision}"}
        profile = {key: value for key, value in profile.items() if key in PROFILE or key == "name"}
        profile["title"] = f"{who.name} {revision}"
        made = who.ask("POST", "/v1/devices", json=profile)
        assert (made.status_code, made.json()["revision"], made.json()["owner_id"]) == (201, revision, who.name)
    assert world.ant.ask("GET", "/v1/devices/shared-name").json()["profile"]["title"] == "ant 1"
    assert world.bee.ask("GET", "/v1/devices/shared-name").json()["profile"]["title"] == "bee 2"
    assert world.ant.ask("GET", "/v1/devices/shared-name@2").status_code == 404
    builtin = world.ant.ask("GET", "/v1/devices/generic-npu").json()
    assert (builtin["builtin"], builtin["owner_id"]) == (True, None)


def test_accuracy_when_another_owner_has_timed_the_profile_then_unknown(world: World) -> None:
    service = world.ant.http.app.state.service  # type: ignore[attr-defined]
    times = {"min_ms": 1.0, "median_ms": 1.0, "p95_ms": 1.0, "runs": 40}
    found = [timings.Timing(f"{n:064x}", 1.0, times, times) for n in range(8)]
    with service.database.writing() as session:
        timings.store(session, session.get_one(Search, world.ant.made["searches"]), found)
    seen = [who.ask("GET", "/v1/devices/generic-npu").json()["accuracy"]["pairs"] for who in (world.ant, world.bee)]
    assert seen == [8, 0]


def test_quota_when_one_owner_has_spent_its_own_then_another_has_not(world: World) -> None:
    service = world.ant.http.app.state.service  # type: ignore[attr-defined]
    extra = owner(world.ant.http, "drone")
    for kind, value in (("max_live_searches", 1), ("max_stored_bytes", 100)):
        former = getattr(service.settings, kind)
        object.__setattr__(service.settings, kind, value)
        try:
            if kind == "max_stored_bytes":
                extra.ask("POST", "/v1/models", content=b"\x08\x0e" + b"q" * 78)
                refused = extra.ask("POST", "/v1/models", content=b"\x08\x0e" + b"r" * 78)
                free = owner(world.ant.http, "moth").ask("POST", "/v1/models", content=b"\x08\x0e" + b"q" * 78)
                assert (refused.json()["used"], free.status_code) == (80, 202)
            else:
                refused = world.bee.ask("POST", "/v1/searches", json=request(world.bee))
                assert refused.json()["used"] >= 1
            assert refused.json()["type"] == "/problems/quota-exceeded"
        finally:
            object.__setattr__(service.settings, kind, former)


def test_idempotency_key_when_two_owners_use_one_then_each_has_its_own_answer(world: World) -> None:
    told = {"Idempotency-Key": "same"}
    made = [
        who.ask("POST", "/v1/devices", json={**PROFILE, "name": "once"}, headers=told) for who in (world.ant, world.bee)
    ]
    assert [answer.status_code for answer in made] == [201, 201]
    assert made[0].json()["id"] != made[1].json()["id"]


def test_key_when_made_for_an_owner_then_it_acts_for_it(world: World) -> None:
    made = world.admin.ask("POST", "/v1/keys", json={"name": "ci", "owner": "ant"}).json()
    assert made["owner_id"] == "ant"
    told = {"Authorization": f"Bearer {made['key']}"}
    assert world.ant.ask("GET", f"/v1/models/{world.ant.made['models']}", headers=told).status_code == 200
    assert world.admin.ask("POST", "/v1/keys", json={"name": "ci"}).json()["owner_id"] == "queen"
    for name in ("me", "Ant", "", "a" * 41, "a b"):
        assert world.admin.ask("POST", "/v1/keys", json={"name": "ci", "owner": name}).status_code == 422


def test_prefixes_when_nouns_have_addresses_then_their_ids_are_in_the_matrix(world: World) -> None:
    apart = {"trial", "timing", "weights"}
    nouns = {path.split("/")[2].split(":")[0] for _, path in WITH_ID}
    assert nouns <= set(world.ant.made)
    assert len(PREFIXES) - len(apart & set(PREFIXES)) <= len(nouns) + 2

"""Every POST that the OpenAPI document gives an Idempotency-Key happens once, and is answered twice alike."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient

from app.api.openapi import UNKEPT
from app.main import create_app
from app.settings import Settings
from app.store import timings
from app.store.tables import Agent, Model, Search
from tests.app.api.owning import SCOPES, Owner, fill, owner, request

Json = dict[str, Any]
ROOT = Path(__file__).resolve().parents[3]
PROFILE: Json = json.loads((ROOT / "examples" / "device.json").read_text())
PATHS: Json = json.loads((ROOT / "docs" / "openapi.json").read_text())["paths"]
KEPT = [
    path
    for path, item in PATHS.items()
    if any(given["name"] == "Idempotency-Key" for given in item.get("post", {}).get("parameters", ()))
]
NETWORK = b"\x08\x0e" + b"r" * 60


@pytest.fixture(scope="module")
def ant(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Owner]:
    """An owner that has made one of everything."""
    settings = Settings(data_dir=tmp_path_factory.mktemp("repeated"), disk_floor_bytes=0)
    with TestClient(create_app(settings)) as client:
        found = owner(client, "ant", (*SCOPES, "admin"))
        fill(found, PROFILE)
        service = client.app.state.service  # type: ignore[attr-defined]
        times = {"min_ms": 1.0, "median_ms": 1.0, "p95_ms": 1.0, "runs": 40}
        with service.database.writing() as session:
            search = session.get_one(Search, found.made["searches"])
            search.device = found.ask("GET", "/v1/devices/generic-npu").json()["profile"]
            timings.store(session, search, [timings.Timing(f"{n:064x}", 1.0, times, times) for n in range(8)])
            assert session.get_one(Agent, found.made["agents"]).state == "active"
            assert session.get_one(Model, found.made["models"]).format == "onnx"
        yield found


def body(who: Owner, path: str) -> Json:
    """Return what is sent to an address."""
    made, search = who.made, request(who)
    fleet = {key: search[key] for key in ("name", "model_id", "dataset")}
    bodies: dict[str, Json] = {
        "/v1/devices": {**PROFILE, "name": "twice"},
        "/v1/searches": search,
        "/v1/fleets": {**fleet, "members": [{"device_id": "generic-npu", "limits": search["limits"]}]},
        "/v1/schedules": {"name": "nightly", "cron": "0 2 * * *", "search": search},
        "/v1/measurements": {"agent_id": made["agents"], "model_ids": [made["models"]]},
        "/v1/keys": {"name": "ci"},
        "/v1/devices/{name}/calibrations": {"model_ids": [made["models"]], "agent_id": made["agents"]},
        "/v1/searches/{id}/extend": {"trials": 100},
        "/v1/searches/{id}/priority": {"priority": 1},
    }
    return bodies.get(path, {})


def test_posts_when_they_are_not_kept_then_each_is_named_with_the_reason() -> None:
    posts = {f"POST {path}" for path, item in PATHS.items() if "post" in item}
    assert posts == {f"POST {path}" for path in KEPT} | UNKEPT and len(KEPT) == 20


@pytest.mark.fault(28)
@pytest.mark.parametrize("path", sorted(KEPT, key=lambda path: (path.endswith("/cancel"), path)))
def test_post_when_repeated_under_its_key_then_the_first_answer_again(ant: Owner, path: str) -> None:
    noun = path.split("/")[2].split(":")[0]
    place = "generic-npu" if noun == "devices" else ant.made[noun]
    address = path.replace("{id}", place).replace("{name}", place)
    told = {"Idempotency-Key": "again"}
    is_upload = path in ("/v1/models", "/v1/datasets", "/v1/models/{id}/weights")
    given: Json = {"content": upload(path)} if is_upload else {"json": body(ant, path)}
    first, second = (ant.ask("POST", address, headers=told, **given) for _ in range(2))
    assert first.status_code in (200, 201, 202), first.text
    assert "idempotency-replayed" not in first.headers and second.headers["idempotency-replayed"] == "true"
    assert (first.status_code, first.json()) == (second.status_code, second.json())
    assert first.headers.get("location") == second.headers.get("location")


def upload(path: str) -> bytes:
    """Return bytes of the right kind."""
    if path == "/v1/models":
        return NETWORK
    header = json.dumps({"x": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}).encode()
    return len(header).to_bytes(8, "little") + header + bytes(4)

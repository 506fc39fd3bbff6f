"""The OpenAPI document: what routes alone don't tell: bodies that are read strictly, refusals by status, links."""

from __future__ import annotations

import json
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from app.api import agent_schema, device_schema, schemas

Json = dict[str, Any]

BODIES: dict[str, type[BaseModel]] = {
    "POST /v1/devices": device_schema.DeviceIn,
    "POST /v1/searches": schemas.SearchIn,
    "POST /v1/searches/preflight": schemas.SearchIn,
    "POST /v1/searches/{id}/extend": schemas.ExtendIn,
    "POST /v1/searches/{id}/priority": schemas.PriorityIn,
    "POST /v1/searches/{id}/whatif": schemas.WhatIfIn,
    "POST /v1/candidates/{id}/export": schemas.ExportAgainIn,
    "POST /v1/fleets": schemas.FleetIn,
    "POST /v1/agents:enrol": agent_schema.EnrolIn,
    "POST /v1/agents/{id}/heartbeat": agent_schema.HeartbeatIn,
    "POST /v1/agents/{id}/jobs:pull": agent_schema.PullIn,
    "POST /v1/agents/{id}/jobs/{job}/results": agent_schema.ResultsIn,
    "POST /v1/measurements": agent_schema.MeasurementIn,
    "POST /v1/devices/{name}/calibrations": agent_schema.CalibrationIn,
    "POST /v1/schedules": schemas.ScheduleIn,
    "PATCH /v1/schedules/{id}": schemas.ScheduleChangeIn,
    "PATCH /v1/models/{id}": schemas.RenameIn,
    "PATCH /v1/datasets/{id}": schemas.RenameIn,
    "POST /v1/keys": schemas.KeyIn,
}
"""JSON bodies by operation."""

OPTIONAL = frozenset({"POST /v1/candidates/{id}/export"})
UPLOADS = ("POST /v1/models", "POST /v1/models/{id}/weights", "POST /v1/datasets")
PART = "PATCH /v1/uploads/{id}"
OPEN = ("/healthz", "/readyz", "/metrics", "/problems/{slug}", "/v1/agents:enrol")
MEDIA = {
    "GET /v1/searches/{id}/events": "text/event-stream",
    "GET /v1/events": "text/event-stream",
    "GET /v1/searches/{id}/study": "application/x-ndjson",
    "GET /v1/artefacts/{id}/content": "application/octet-stream",
    "GET /v1/agents/{id}/jobs/{job}/items/{item}": "application/octet-stream",
    "GET /metrics": "text/plain",
    "GET /problems/{slug}": "text/plain",
}
TUS = {
    "POST": {"Tus-Resumable": "1.0.0", "Upload-Length": "Bytes.", "Upload-Metadata": "kind, name, spec, model_id."},
    "HEAD": {"Tus-Resumable": "1.0.0"},
    "PATCH": {"Tus-Resumable": "1.0.0", "Upload-Offset": "Bytes.", "Upload-Checksum": "sha1 or sha256, base64."},
    "DELETE": {"Tus-Resumable": "1.0.0"},
}
"""Headers of resumable uploads."""
UNKEPT = frozenset(
    {
        "POST /v1/searches/preflight",
        "POST /v1/searches/{id}/whatif",
        "POST /v1/uploads",
        "POST /v1/agents/enrolments",
        "POST /v1/agents:enrol",
        "POST /v1/agents/{id}/heartbeat",
        "POST /v1/agents/{id}/jobs:pull",
        "POST /v1/agents/{id}/jobs/{job}/results",
    }
)
"""POSTs whose answers are not kept: they change nothing, may be repeated anyway, or tell a secret once."""
ALWAYS = (400, 404, 405, 408, 421, 422, 429, 431, 500, 503)
MATCHED = ("/v1/models/{id}", "/v1/datasets/{id}", "/v1/schedules/{id}")
MORE: dict[str, tuple[int, ...]] = {
    "POST /v1/devices": (200,),
    "POST /v1/searches/{id}/cancel": (200,),
    "POST /v1/searches/{id}/pause": (200,),
    "POST /v1/searches/{id}/resume": (200,),
    "POST /v1/agents/{id}/jobs:pull": (204,),
    "DELETE /v1/models/{id}": (202,),
    "DELETE /v1/datasets/{id}": (202,),
    "GET /readyz": (503,),
}
"""Good answers beside the first."""

_EVENT: Json = {
    "type": "object",
    "description": "One event of the stream; `data` is JSON: seq, kind, at, and what the kind tells.",
    "required": ["id", "event", "data"],
    "properties": {name: {"type": "string"} for name in ("id", "event", "data")},
}
_PROBLEM: Json = {
    "type": "object",
    "required": ["type", "title", "status", "detail", "instance", "errors", "request_id"],
    "properties": {
        "type": {"type": "string", "pattern": "^/problems/[a-z0-9-]+$"},
        "title": {"type": "string"},
        "status": {"type": "integer"},
        "detail": {"type": "string"},
        "instance": {"type": "string"},
        "request_id": {"type": ["string", "null"]},
        "errors": {
            "type": "array",
            "items": {
                "type": "object",
                "required": ["pointer", "code", "detail"],
                "properties": {name: {"type": "string"} for name in ("pointer", "code", "detail")},
            },
        },
    },
}


def install(app: FastAPI) -> None:
    """Make an application tell the whole document at /openapi.json."""
    generate = app.openapi

    def told() -> Json:
        if app.openapi_schema is None:
            app.openapi_schema = completed(generate())
        return app.openapi_schema

    app.openapi = told  # type: ignore[method-assign]


def completed(document: Json) -> Json:
    """Return a generated document with bodies, refusals, headers, security and links."""
    used: list[Any] = sorted({(model, "validation") for model in BODIES.values()}, key=lambda pair: pair[0].__name__)
    refs, definitions = models_json_schema(used, ref_template="#/components/schemas/{model}")
    document["components"] = {
        "schemas": {**definitions.get("$defs", {}), "Problem": _PROBLEM},
        "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
    }
    for path, item in document["paths"].items():
        for method, operation in item.items():
            name = f"{method.upper()} {path}"
            _complete(name, path, operation)
            if name in BODIES:
                content = {"application/json": {"schema": refs[(BODIES[name], "validation")]}}
                operation["requestBody"] = {"required": name not in OPTIONAL, "content": content}
    _link(document["paths"])
    return document


def _complete(name: str, path: str, operation: Json) -> None:
    method = name.split(" ")[0]
    responses = operation["responses"]
    responses.pop("422", None)
    good = next(iter(responses))
    if name in MEDIA:
        schema = _EVENT if MEDIA[name] == "text/event-stream" else {"type": "string"}
        responses[good]["content"] = {MEDIA[name]: {"schema": schema}}
    for status in MORE.get(name, ()):
        responses[str(status)] = {**responses[good], "description": HTTPStatus(status).phrase}
        if status == 204:
            del responses["204"]["content"]
    for status in _refusals(name, method, path):
        responses.setdefault(str(status), _refusal(status))
    if path not in OPEN:
        operation["security"] = [{"key": []}]
    if name in (*UPLOADS, PART):
        media = "application/offset+octet-stream" if name == PART else "application/octet-stream"
        body = {"schema": {"type": "string", "format": "binary"}}
        operation["requestBody"] = {"required": True, "content": {media: body}}
    _conditions(name, method, path, operation)


def _conditions(name: str, method: str, path: str, operation: Json) -> None:
    """Tell the headers that an operation reads, and the answers that come of them."""
    responses = operation["responses"]
    for header, description in (TUS.get(method, {}) if path.startswith("/v1/uploads") else {}).items():
        _header(operation, header, description)
    if path in MATCHED and method in ("PATCH", "DELETE"):
        _header(operation, "If-Match", "The ETag that was seen, or `*` for any state.")
    if method == "GET" and path.startswith("/v1/") and path.endswith(("{id}", "/content", "{item}")):
        responses["304"] = {"description": "The client has this state."}
        _header(operation, "If-None-Match", "ETags that the client has.")
    if MEDIA.get(name) == "application/octet-stream":
        responses["206"] = {**responses["200"], "description": "The range that was asked for."}
        responses["416"] = _refusal(416)
    if method == "POST" and path.startswith("/v1/") and name not in UNKEPT:
        _header(operation, "Idempotency-Key", "A repeated request under the same key gets the first one's answer.")


def _refusals(name: str, method: str, path: str) -> list[int]:
    found = [*ALWAYS]
    if path not in OPEN or path == "/v1/agents:enrol":
        found += [401, 403]
    if name in BODIES or name in UPLOADS:
        found += [413, 415]
    if name in UPLOADS:
        found += [411, 507]
    if method in ("POST", "DELETE"):
        found += [409]
    if path in MATCHED and method != "GET":
        found += [412, 428]
    if path.startswith("/v1/uploads"):
        found += [409, 410, 412, 413, 415, 460, 507]
    if path.startswith(("/v1/agents", "/v1/measurements", "/v1/devices/{name}/calibrations")):
        found += [410]
    return found


def _refusal(status: int) -> Json:
    schema = {"$ref": "#/components/schemas/Problem"}
    phrase = "Checksum mismatch" if status == 460 else HTTPStatus(status).phrase
    return {"description": phrase, "content": {"application/problem+json": {"schema": schema}}}


def _header(operation: Json, name: str, description: str) -> None:
    schema = {"type": "string", "pattern": "^[\\x21-\\x7e]{1,64}$"}
    found = {"name": name, "in": "header", "required": False, "description": description, "schema": schema}
    operation.setdefault("parameters", []).append(found)


def _link(paths: Json) -> None:
    """Lead from what makes a resource to what reads and changes it."""
    for path, item in paths.items():
        reads = [
            operation["operationId"]
            for other, entry in paths.items()
            if other == f"{path}/{{id}}" or other.startswith(f"{path}/{{id}}/")
            for operation in entry.values()
        ]
        made = item.get("post", {}).get("responses", {})
        for status in ("201", "202"):
            if reads and status in made:
                made[status]["links"] = {
                    name: {"operationId": name, "parameters": {"id": "$response.body#/id"}} for name in reads
                }


def main() -> None:
    """Print the document, as it is kept in `docs/openapi.json`."""
    from app.main import create_app

    print(json.dumps(create_app().openapi(), indent=1, sort_keys=True))


if __name__ == "__main__":
    main()

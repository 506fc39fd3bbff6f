"""What every route shares: strict JSON, names, paging, idempotency."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import math
from collections import Counter
from collections.abc import Callable
from typing import Annotated, Any, NamedTuple, TypeVar
from urllib.parse import urlencode

from fastapi import Depends, Query, Request
from fastapi.responses import JSONResponse
from pydantic import AwareDatetime, BaseModel, ValidationError

from app.actions import Service
from app.api import auth
from app.api.answers import ProblemResponse, add_headers
from app.api.sealing import Seal
from app.domain import owners
from app.domain.owners import Sight
from app.problems import Problem, field_error
from app.store import idempotency
from app.store.tables import Idempotency

Json = dict[str, Any]
Body = TypeVar("Body", bound=BaseModel)
MAX_DEPTH = 64
MAX_DIGITS = 400


def service(request: Request) -> Service:
    """Return the process's service."""
    found: Service = request.app.state.service
    return found


async def _service(request: Request) -> Service:
    # a coroutine: what is none goes to another thread and back, each time a wait for its turn
    return service(request)


def key(request: Request) -> auth.Key:
    """Return who asks; refuses addresses that failed too often... and everyone without a valid key."""
    return auth.authenticate(request)


ServiceDep = Annotated[Service, Depends(_service)]
KeyDep = Annotated[auth.Key, Depends(key)]
Filter = Annotated[str | None, Query(pattern=r"^[\x21-\x7e]{1,64}$")]
_WHOSE = "`me`, or an owner's name, for administrators, whose lists else hold every owner's."
Whose = Annotated[str | None, Query(pattern=r"^[\x21-\x7e]{1,40}$", description=_WHOSE)]
Since = Annotated[AwareDatetime | None, Query(description="Only what was made after this moment (RFC 3339).")]


async def strict_json(request: Request, limit: int) -> Any:
    """Return a request's JSON: UTF-8 only, no duplicate keys, no NaN, bounded in size and depth."""
    _check_is_json(request)
    return parse_json(await read_raw(request, limit))


def _check_is_json(request: Request) -> None:
    kind = content_type(request)
    if kind != "application/json":
        raise Problem("unsupported-media-type", f"Content-Type {kind or 'missing'!r}; application/json is needed")


def content_type(request: Request) -> str:
    """Return a request's media type in lower case, without parameters."""
    return request.headers.get("content-type", "").split(";")[0].strip().lower()


async def read_raw(request: Request, limit: int) -> bytes:
    """Return a request's body. Raises Problem body-too-large beyond `limit` bytes."""
    raw = bytearray()
    async for chunk in request.stream():
        raw += chunk
        if len(raw) > limit:
            raise Problem("body-too-large", f"more than {limit} bytes")
    return bytes(raw)


def parse_json(raw: bytes) -> Any:
    """Parse strict JSON. Raises Problem malformed-json, duplicate-json-key or invalid-number."""
    try:
        text = raw.decode("utf-8")
        if _depth(text) > MAX_DEPTH or text.startswith("\ufeff"):
            raise Problem("malformed-json", "nested too deeply, or begins with a byte order mark")
        value = json.loads(text, object_pairs_hook=_unique, parse_constant=float, parse_int=_integer)
    except (UnicodeDecodeError, ValueError, RecursionError) as error:
        raise Problem("malformed-json", str(error)[:200]) from error
    place = _not_finite(value)
    if place is not None:
        detail = "NaN, infinity or too large: no JSON number"
        raise Problem("invalid-number", f"{place[:200] or 'the body'}: {detail}", [field_error(place, detail)])
    return value


def _depth(text: str) -> int:
    depth = deepest = 0
    inside = escaped = False
    for char in text:
        if inside:
            inside = escaped or char != '"'
            escaped = char == "\\" and not escaped
        elif char == '"':
            inside = True
        elif char in "[{":
            depth += 1
            deepest = max(deepest, depth)
        elif char in "]}":
            depth -= 1
    return deepest


def _unique(pairs: list[tuple[str, Any]]) -> Json:
    found = dict(pairs)
    if len(found) != len(pairs):
        times = Counter(name for name, _ in pairs)
        raise Problem("duplicate-json-key", f"{sorted(name for name, count in times.items() if count > 1)[:5]}")
    return found


def _integer(text: str) -> int:
    if len(text) > MAX_DIGITS:
        raise Problem("malformed-json", f"an integer of {len(text)} digits")
    return int(text)


def _not_finite(value: Any, pointer: str = "") -> str | None:
    """Return the pointer of the first number that is not finite, if there is one."""
    if isinstance(value, float):
        return None if math.isfinite(value) else pointer
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    found = (_not_finite(item, f"{pointer}/{key}") for key, item in items)
    return next((place for place in found if place is not None), None)


def validated(schema: type[Body], data: Any, slug: str = "invalid-request") -> Body:
    """Return a request's body as its schema, or raise a Problem with a pointer per fault."""
    try:
        return schema.model_validate(data)
    except ValidationError as error:
        faults = error.errors(include_url=False, include_context=False, include_input=False)
        errors = [field_error("/" + "/".join(map(str, item["loc"])), item["msg"], item["type"]) for item in faults]
        unknown = all(item["type"] == "extra_forbidden" and item["loc"][0] != "methods" for item in faults)
        found = "unknown-field" if unknown and slug == "invalid-request" else _slug(faults, slug)
        detail = "; ".join(f"{item['pointer']}: {item['detail']}" for item in errors[:5])
        raise Problem(found, detail, errors) from error


_BY_FIELD = {
    "limits": "invalid-budget",
    "space": "invalid-search-space",
    "search": "invalid-limits",
    "name": "invalid-name",
    "metric": "metric-not-measurable",
    "methods": "invalid-method-params",
}


def _slug(faults: Any, slug: str) -> str:
    """Name a fault after the part of the request it is in."""
    if slug != "invalid-request":
        return slug
    first = faults[0]["loc"][0] if faults[0]["loc"] else ""
    missing = faults[0]["type"] == "missing"
    return slug if missing else _BY_FIELD.get(str(first), slug)


async def body(request: Request, schema: type[Body], slug: str = "invalid-request") -> Body:
    """Read and validate a JSON body."""
    limit = service(request).settings.max_json_bytes
    return validated(schema, await strict_json(request, limit), slug)


async def optional_body(request: Request, schema: type[Body]) -> Body:
    """Read and validate a JSON body that may be missing altogether."""
    raw = await read_raw(request, service(request).settings.max_json_bytes)
    if not raw:
        return schema()
    _check_is_json(request)
    return validated(schema, parse_json(raw))


class Listed(NamedTuple):
    """What a list's page is asked for: so many rows below an id, of whom."""

    size: int
    before: str | None
    sight: Sight


async def page_of(request: Request, limit: int | None = None, cursor: str | None = None) -> tuple[int, str | None]:
    """Return (limit, last id) of a paging request. Raises Problem invalid-limit or invalid-cursor."""
    size = 50 if limit is None else limit
    if not 1 <= size <= 200:
        raise Problem("invalid-limit", f"limit {size}; 1 to 200", [field_error("/limit", "1 to 200")])
    if cursor is None:
        return size, None
    text, _, signature = cursor.rpartition(".")
    try:
        value = base64.urlsafe_b64decode(text.encode("ascii")).decode("ascii")
    except ValueError:
        value = ""
    if not auth.same(signature, _signature(request, value)):
        raise Problem("invalid-cursor", "the cursor is not one of ours, or of another list or filter")
    return size, value


PagingDep = Annotated[tuple[int, str | None], Depends(page_of)]


def owner_of(key: auth.Key, named: str | None) -> Sight:
    """Return whose rows are asked for: those of an owner that is named, else all that the key sees.

    Raises Problem not-found for another's than the key's own, unless an administrator asks.
    """
    owner = key.owner_id if named == owners.ME else named
    if key.sight is not None and owner not in (None, key.owner_id):
        raise Problem("not-found", f"no owner {owner!r}")
    return key.sight if owner is None else owner


async def list_of(paging: PagingDep, key: KeyDep, owner: Whose = None) -> Listed:
    """Return the page of a list that is asked for, and whose rows are in it."""
    return Listed(*paging, owner_of(key, owner))


ListDep = Annotated[Listed, Depends(list_of)]


def paged(request: Request, items: list[Json], size: int, last: str | None) -> Json:
    """Return a page; `last` is the sort key of its last item. A `Link` header leads to the next one."""
    if len(items) < size or last is None:
        return {"items": items, "next_cursor": None}
    cursor = f"{base64.urlsafe_b64encode(last.encode()).decode()}.{_signature(request, last)}"
    query = urlencode([*_filters(request), ("limit", str(size)), ("cursor", cursor)])
    add_headers(request, {"Link": f'<{request.url.path}?{query}>; rel="next"'})
    return {"items": items, "next_cursor": cursor}


def _filters(request: Request) -> list[tuple[str, str]]:
    return sorted(pair for pair in request.query_params.multi_items() if pair[0] not in ("cursor", "limit"))


def _signature(request: Request, value: str) -> str:
    """Sign a place in one list under one filter."""
    text = json.dumps([request.url.path, _filters(request), value]).encode()
    return hmac.new(auth.secret(service(request)), text, hashlib.sha256).hexdigest()[:16]


def idempotent(
    request: Request,
    who: auth.Key,
    fingerprint: bytes,
    act: Callable[[], JSONResponse],
    seal: Seal | None = None,
) -> JSONResponse:
    """Run `act` once per Idempotency-Key: a repeated request gets the first answer, another body is refused.

    A seal covers the secret of an answer where it is kept.

    What `act` writes and the answer are kept in one transaction, so a kill leaves both or neither. The same request at
    the same instant waits for the first one's transaction, but not for ever: then it raises request-in-progress.
    """
    name = request.headers.get("idempotency-key")
    if name is None:
        return act()
    if not 1 <= len(name) <= 64 or not name.isascii() or not name.isprintable():
        raise Problem("invalid-request", "Idempotency-Key has 1 to 64 visible ASCII characters")
    here, digest = service(request), hashlib.sha256(fingerprint).hexdigest()
    place = (who.id, f"{request.method} {request.url.path}", name)
    wait_s = here.settings.idempotency_wait_s
    with request.app.state.flights.entering(place, wait_s), here.database.joining() as session:
        try:
            row = idempotency.reserve(session, place, digest, here.settings.idempotency_s, wait_s)
        except idempotency.StillHeld as held:
            raise Problem("request-in-progress", "the first request under this key is still under way") from held
        if row is not None:
            return _replayed(request, row, digest, seal)
        mine = session.get_one(Idempotency, place)
        try:
            with session.begin_nested():
                answer = act()
        except Problem as problem:
            if problem.status >= 500:
                raise
            refusal = problem
            mine.status, mine.body = problem.status, problem.to_json(request.url.path)
        else:
            told = json.loads(bytes(answer.body))
            mine.status, mine.body = answer.status_code, told if seal is None else seal.close(told)
            mine.location = answer.headers.get("location")
            return answer
    raise refusal


def _replayed(request: Request, row: Idempotency, digest: str, seal: Seal | None) -> JSONResponse:
    if row.digest != digest:
        raise Problem("idempotency-key-reused", "the key came with another body before")
    assert row.status is not None, "the answer is committed with the row"
    headers = {"Idempotency-Replayed": "true", **({"Location": row.location} if row.location else {})}
    if row.status < 400:
        body = row.body or {}
        return JSONResponse(body if seal is None else seal.open(body), row.status, headers)
    told = {**(row.body or {}), "request_id": request.state.request_id}
    return ProblemResponse(told, row.status, headers)

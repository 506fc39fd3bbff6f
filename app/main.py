"""The service: one FastAPI application; nothing happens on import."""

from __future__ import annotations

import json
import logging
import threading
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from importlib.metadata import version
from pathlib import Path

import sqlalchemy as sa
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, RedirectResponse, Response
from starlette.exceptions import HTTPException
from starlette.routing import Match

from app import actions, queue
from app.actions import Service
from app.api import admin, agents, calibrations, devices, fleets, resources, searches
from app.api.auth import Attempts, ensure_admin_key
from app.api.device_schema import Json, checked_profile
from app.problems import Problem, field_error
from app.settings import Settings
from app.store.blobs import Blobs
from app.store.engine import connect
from app.store.migrate import upgrade

log = logging.getLogger("tightfit.api")
MAX_PATH = 512
DEVICES = Path(__file__).parent / "devices"


def create_app(settings: Settings | None = None) -> FastAPI:
    """Return the application; tables are brought up to date when it starts."""
    chosen = settings or Settings()
    app = FastAPI(
        title="tightfit",
        version=version("tightfit"),
        lifespan=_lifespan,
        redirect_slashes=False,
        docs_url=None,  # its page would fetch scripts from elsewhere; /openapi.json is served
        redoc_url=None,
    )
    app.state.settings = chosen
    app.state.stopping = threading.Event()
    app.state.attempts = Attempts(chosen.failed_logins_per_minute)
    for router in (
        resources.router,
        devices.router,
        searches.router,
        fleets.router,
        agents.router,
        calibrations.router,
        admin.router,
    ):
        app.include_router(router)
    _add_web(app)
    app.add_exception_handler(Problem, _problem)
    app.add_exception_handler(RequestValidationError, _validation)
    app.add_exception_handler(HTTPException, _http)
    app.add_exception_handler(sa.exc.OperationalError, _busy)
    app.add_exception_handler(Exception, _fault)
    app.middleware("http")(_guard)
    return app


@asynccontextmanager
async def _lifespan(app: FastAPI) -> AsyncIterator[None]:
    app.state.service = start(app.state.settings)
    yield
    app.state.stopping.set()
    app.state.service.client.destroy()
    app.state.service.database.dispose()


def start(settings: Settings) -> Service:
    """Bring the database up to date and return the service, with its first key and built-in devices."""
    settings.data_dir.mkdir(parents=True, exist_ok=True)
    upgrade(settings.database_url)
    database = connect(settings.database_url)
    service = Service(settings, database, Blobs(settings.blob_dir), queue.client(database))
    ensure_admin_key(service)
    actions.ensure_devices(service, builtin_profiles())
    actions.ensure_schedules(service)
    return service


def builtin_profiles() -> list[Json]:
    """Return the records of the built-in device profiles, checked as users' are."""
    return [checked_profile(json.loads(file.read_text())) for file in sorted(DEVICES.glob("*.json"))]


def _add_web(app: FastAPI) -> None:
    from app.web import mount

    @app.get("/", include_in_schema=False)
    def home() -> Response:
        return RedirectResponse("/searches", status_code=303)

    mount(app)


def is_plain(path: str) -> bool:
    """Tell whether an address can be one of ours: short, printable ASCII. Others never reach a query or file name."""
    return len(path) <= MAX_PATH and path.isascii() and path.isprintable()


async def _guard(request: Request, call_next: Callable[[Request], Awaitable[Response]]) -> Response:
    """Give each request an id, count failed keys per address, and say nosniff."""
    request.state.request_id = uuid.uuid4().hex
    attempts: Attempts = request.app.state.attempts
    address = request.client.host if request.client else "-"
    if not is_plain(request.scope["path"]):
        response: Response = _answer(request, Problem("not-found", "no address has such characters, or is that long"))
    elif attempts.is_blocked(address) and "authorization" in request.headers:
        problem = Problem("too-many-attempts", "too many wrong keys from this address; wait a minute")
        response = _answer(request, problem)
        response.headers["Retry-After"] = "60"
    else:
        response = await call_next(request)
        if response.status_code == 401 and "authorization" in request.headers:
            attempts.failed(address)
    response.headers["X-Request-Id"] = request.state.request_id
    response.headers.setdefault("X-Content-Type-Options", "nosniff")
    return response


def _answer(request: Request, problem: Problem) -> JSONResponse:
    body = {**problem.to_json(request.url.path), "request_id": getattr(request.state, "request_id", None)}
    headers = {"WWW-Authenticate": "Bearer"} if problem.status == 401 else {}
    return JSONResponse(body, problem.status, headers, media_type="application/problem+json")


async def _problem(request: Request, error: Exception) -> Response:
    assert isinstance(error, Problem)
    return _answer(request, error)


async def _validation(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    errors = [
        field_error("/" + "/".join(map(str, item["loc"][1:])), item["msg"], item["type"]) for item in error.errors()
    ]
    return _answer(request, Problem("invalid-request", "; ".join(e["detail"] for e in errors[:5]), errors))


async def _http(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    slug = {404: "not-found", 405: "method-not-allowed"}.get(error.status_code, "invalid-request")
    answer = _answer(request, Problem(slug, str(error.detail)))
    for name, value in (error.headers or {}).items():
        answer.headers[name] = value
    if error.status_code == 405:
        answer.headers["Allow"] = ", ".join(_allowed(request))
    return answer


def _allowed(request: Request) -> list[str]:
    """Return the methods that an address takes; the framework names those of its first route only."""
    found = set()
    for method in ("GET", "POST", "DELETE", "PUT", "PATCH"):
        scope = {**request.scope, "method": method}
        if any(route.matches(scope)[0] is Match.FULL for route in request.app.routes):
            found.add(method)
    return sorted(found)


async def _busy(request: Request, error: Exception) -> Response:
    log.warning("database: %s", error)
    answer = _answer(request, Problem("busy", "the database did not answer in time; try again"))
    answer.headers["Retry-After"] = "1"
    return answer


async def _fault(request: Request, error: Exception) -> Response:
    log.exception("request %s", getattr(request.state, "request_id", "-"), exc_info=error)
    return _answer(request, Problem("internal-error", "a fault of the service"))

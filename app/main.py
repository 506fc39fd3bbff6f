"""The service: one FastAPI application; nothing happens on import."""

from __future__ import annotations

import json
import logging
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib.metadata import version
from pathlib import Path

import sqlalchemy as sa
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import RedirectResponse, Response
from prometheus_client import CollectorRegistry
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.routing import Match

from app import actions, queue
from app.actions import Service
from app.api import admin, agents, calibrations, devices, fleets, history, openapi, resources, searches, steering, tus
from app.api.answers import answer
from app.api.auth import Attempts, ensure_admin_key
from app.api.device_schema import Json, checked_profile
from app.api.flights import Flights, Streams
from app.api.guard import Guard
from app.api.rates import Rates
from app.api.timed import Timed
from app.api.usage import Usage
from app.problems import Problem, field_error
from app.settings import Settings
from app.store.blobs import Blobs
from app.store.engine import connect, is_read_only
from app.store.migrate import is_current, upgrade

log = logging.getLogger("tightfit.api")
DEVICES = Path(__file__).parent / "devices"


def create_app(settings: Settings | None = None) -> FastAPI:
    """Return the application; tables are brought up to date when it starts."""
    chosen = settings or Settings()
    app = FastAPI(
        title="tightfit",
        version=version("tightfit"),
        lifespan=_lifespan,
        redirect_slashes=False,
        telemetry={"auto_configure": True} if chosen.otel else {"tracing": False, "metrics": False, "logs": False},
        docs_url=None,  # its page would fetch scripts from elsewhere; /openapi.json is served
        redoc_url=None,
    )
    app.state.settings = chosen
    app.state.registry = CollectorRegistry()
    app.state.stopping = threading.Event()
    app.state.flights = Flights()
    app.state.streams = Streams(chosen.streams_per_key, chosen.streams)
    app.state.rates = Rates(chosen.requests_per_s, chosen.request_burst)
    app.state.usage = Usage()
    app.state.attempts = Attempts(chosen.failed_logins_per_minute)
    for router in (
        resources.router,
        devices.router,
        searches.router,
        steering.router,
        tus.router,
        fleets.router,
        agents.router,
        calibrations.router,
        history.router,
        admin.router,
    ):
        app.include_router(router)
    _add_web(app)
    app.add_exception_handler(Problem, _problem)
    app.add_exception_handler(RequestValidationError, _validation)
    app.add_exception_handler(HTTPException, _http)
    app.add_exception_handler(ClientDisconnect, _gone)
    app.add_exception_handler(sa.exc.DBAPIError, _database)
    app.add_exception_handler(Exception, _fault)
    openapi.install(app)
    app.add_middleware(Timed, registry=app.state.registry)
    app.add_middleware(Guard, settings=chosen, attempts=app.state.attempts)
    return app


@asynccontextmanager
async def _lifespan(app: FastAPI) -> AsyncIterator[None]:
    app.state.service = start(app.state.settings)
    yield
    app.state.stopping.set()
    app.state.usage.close()
    app.state.service.client.destroy()
    app.state.service.database.dispose()


def start(settings: Settings) -> Service:
    """Bring the database up to date and return the service, with its first key and built-in devices.

    On a database that can be read only it serves what is there.
    """
    settings.data_dir.mkdir(parents=True, exist_ok=True)
    database = connect(settings.database_url)
    service = Service(settings, database, Blobs(settings.blob_dir), queue.client(database))
    try:
        upgrade(settings.database_url)
        ensure_admin_key(service)
        actions.ensure_devices(service, builtin_profiles())
        actions.ensure_schedules(service)
    except (sa.exc.DBAPIError, OSError) as error:
        if not is_read_only(error) or not is_current(settings.database_url):
            raise
        log.error("the database can't be written, reads only: %s", error)
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


async def _problem(request: Request, error: Exception) -> Response:
    assert isinstance(error, Problem)
    return answer(request.scope, error)


async def _validation(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    errors = [
        field_error("/" + "/".join(map(str, item["loc"][1:])), item["msg"], item["type"]) for item in error.errors()
    ]
    return answer(request.scope, Problem("invalid-request", "; ".join(e["detail"] for e in errors[:5]), errors))


async def _http(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    slug = {404: "not-found", 405: "method-not-allowed"}.get(error.status_code, "invalid-request")
    told = answer(request.scope, Problem(slug, str(error.detail)))
    for name, value in (error.headers or {}).items():
        told.headers[name] = value
    if error.status_code == 405:
        told.headers["Allow"] = ", ".join(_allowed(request))
    return told


def _allowed(request: Request) -> list[str]:
    """Return the methods that an address takes; the framework names those of its first route only."""
    found = set()
    for method in ("GET", "POST", "DELETE", "PUT", "PATCH"):
        scope = {**request.scope, "method": method}
        if any(route.matches(scope)[0] is Match.FULL for route in request.app.routes):
            found.add(method)
    return sorted(found)


async def _gone(request: Request, error: Exception) -> Response:
    """The client left in the middle of its body; nobody reads this answer, and no fault is logged."""
    return answer(request.scope, Problem("incomplete-upload", "the connection ended within the body"))


async def _database(request: Request, error: Exception) -> Response:
    if is_read_only(error):
        return answer(request.scope, Problem("read-only", "the service can't write to its database"))
    if not isinstance(error, sa.exc.OperationalError):
        return await _fault(request, error)
    log.warning("database: %s", error)
    return answer(request.scope, Problem("busy", "the database did not answer in time; try again"))


async def _fault(request: Request, error: Exception) -> Response:
    log.exception("request %s", getattr(request.state, "request_id", "-"), exc_info=error)
    return answer(request.scope, Problem("internal-error", "a fault of the service"))

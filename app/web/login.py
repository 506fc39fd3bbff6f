"""Logging in with an API key, as with Jupyter: a link with a token becomes an HttpOnly cookie with a signed session."""

from __future__ import annotations

from typing import Annotated
from urllib.parse import parse_qs, urlencode, urlsplit

from fastapi import APIRouter, Request, Response
from fastapi.params import Query
from fastapi.responses import RedirectResponse

from app.actions import Service
from app.api import auth
from app.problems import Problem
from app.web.render import HEADERS, page

MAX_FORM = 10_000
HOME = "/searches"
Next = Annotated[str, Query(max_length=2000)]

router = APIRouter(include_in_schema=False)


class LoginNeeded(Exception):
    """A page was asked for without a session."""

    def __init__(self, back: str) -> None:
        super().__init__(back)
        self.back = back


def signed_in(request: Request) -> auth.Key:
    """Return who looks at a page. Raises LoginNeeded, which leads to the login page."""
    try:
        return auth.authenticate(request)
    except Problem as problem:
        if problem.slug != "unauthenticated":
            raise
        back = request.url.path + (f"?{request.url.query}" if request.url.query else "")
        raise LoginNeeded(back) from problem


def to_login(request: Request, needed: Exception) -> Response:
    """Answer LoginNeeded: fragments and figures say 401, pages lead to the login."""
    assert isinstance(needed, LoginNeeded)
    if request.url.path.startswith("/web/"):
        return Response(status_code=401, headers=HEADERS)
    return RedirectResponse(f"/login?{urlencode({'next': needed.back})}", 303, HEADERS)


@router.get("/login")
def login(request: Request, token: str | None = None, next: Next = HOME) -> Response:
    """Log in by a link, or show the form."""
    if token is None:
        return page("login.html", next=next, wrong="")
    return _enter(request, token, next)


@router.post("/login")
async def login_form(request: Request) -> Response:
    """Log in by the form."""
    raw = bytearray()
    async for chunk in request.stream():
        raw += chunk
        if len(raw) > MAX_FORM:
            raise Problem("body-too-large", f"more than {MAX_FORM} bytes")
    form = parse_qs(raw.decode("utf-8", "replace"))
    return _enter(request, form.get("token", [""])[0].strip(), form.get("next", [HOME])[0])


@router.post("/logout")
def logout() -> Response:
    """Forget the session."""
    answer = RedirectResponse("/login", 303, HEADERS)
    answer.delete_cookie(auth.COOKIE, httponly=True, samesite="lax")
    return answer


def safe_next(target: str) -> str:
    """Return a path on this service, whatever a link says: never another host, never the login itself."""
    parts = urlsplit(target)
    here = not parts.scheme and not parts.netloc and target.startswith("/") and not target.startswith(("//", "/\\"))
    return target if here and not parts.path.startswith("/login") and target.isprintable() else HOME


def _enter(request: Request, token: str, target: str) -> Response:
    service: Service = request.app.state.service
    attempts: auth.Attempts = request.app.state.attempts
    address = request.client.host if request.client else ""
    if attempts.is_blocked(address):
        told = "Too many wrong keys; wait a minute."
        return page("login.html", 429, next=target, wrong=told)
    try:
        key = auth.check_token(service, token)
    except Problem:
        attempts.failed(address)
        return page("login.html", 403, next=target, wrong="This key is not known here.")
    answer = RedirectResponse(safe_next(target), 303, HEADERS)
    answer.set_cookie(
        auth.COOKIE,
        auth.issue_session(service, key),
        max_age=int(service.settings.session_s),
        httponly=True,
        samesite="lax",
        secure=request.url.scheme == "https",
    )
    return answer

"""Logging in with an API key, as with Jupyter: a link with a token becomes an HttpOnly cookie."""

from __future__ import annotations

from fastapi import APIRouter, Request

COOKIE = "tightfit_session"
router = APIRouter(include_in_schema=False)


def signed_in(request: Request) -> None: ...

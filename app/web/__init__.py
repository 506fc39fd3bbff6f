"""The dashboard: pages, fragments, figures and static files."""

from __future__ import annotations

from fastapi import APIRouter, FastAPI

from app.web import assets, login, pages

router = APIRouter()
router.include_router(assets.router)
router.include_router(login.router)
router.include_router(pages.router)


def mount(app: FastAPI) -> None:
    """Add the dashboard's pages and files to a service; `app.state.service` must be set."""
    app.include_router(router)
    app.mount("/static", assets.Static(directory=assets.STATIC), name="static")
    app.add_exception_handler(login.LoginNeeded, login.to_login)

"""Templates to HTML answers under a strict content security policy."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastapi import Response

from app.commands.devicesheet import pairs_text
from app.domain.artefacts import suffix_of, title_of
from app.domain.words import amount, duration, label, percent, quality_verdict, verdict, warnings
from app.web import view
from app.web.assets import plotly_style_ids, plotly_version, static_url

if TYPE_CHECKING:
    from jinja2 import Environment

CSP = (
    "default-src 'none'; script-src 'self'; "
    "style-src 'self' 'sha256-47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU='; style-src-attr 'unsafe-inline'; "
    "img-src 'self' data: blob:; connect-src 'self'; base-uri 'none'; form-action 'self'; frame-ancestors 'none'"
)
_ALWAYS = {
    "Cache-Control": "no-store",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}
HEADERS = {"Content-Security-Policy": CSP, **_ALWAYS, "Cross-Origin-Opener-Policy": "same-origin"}
# no Cross-Origin-Opener-Policy: browsers refuse a sandboxed page that has one
SANDBOX = {
    "Content-Security-Policy": "sandbox; default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; "
    "form-action 'none'; frame-ancestors 'none'",
    **_ALWAYS,
}
"""What a file from a worker is shown under: it has an origin of its own, and nothing in it runs or is fetched."""


@cache
def _templates() -> Environment:
    """Return the templates; a service without people never needs them, nor their language."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined, select_autoescape

    loader = FileSystemLoader(Path(__file__).with_name("templates"))
    made = Environment(
        loader=loader, autoescape=select_autoescape(), undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    made.filters.update(
        amount=lambda value, metric: amount(metric, value),
        best_quality=view.best_quality,
        brief=view.brief,
        duration=duration,
        heading=view.heading,
        filename=lambda item: item.get("filename") or item["id"] + suffix_of(item["kind"]),
        label=label,
        limits=view.limits_of,
        moment=view.moment,
        of_several=view.of_several,
        pairs=lambda device: pairs_text(device["profile"]).split(),
        percent=percent,
        pretty=lambda value: json.dumps(value, indent=2),
        quality_verdict=quality_verdict,
        title_of=title_of,
        trials=view.trials_of,
        verdict=verdict,
        warnings=warnings,
    )
    made.globals.update(static=static_url, plotly_version=plotly_version(), plotly_style_ids=plotly_style_ids)
    return made


def page(template: str, status: int = 200, /, here: str = "", **values: Any) -> Response:
    """Render a template; `here` is the entry of the navigation to mark."""
    text = _templates().get_template(template).render(here=here, **values)
    return Response(text, status, HEADERS, media_type="text/html; charset=utf-8")

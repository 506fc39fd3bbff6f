"""The report as one HTML file: a pure function of the JSON report, with nothing in it that runs or is fetched.

Styles and pictures are inline. The policy in the file allows its own style sheet by digest and nothing else; every
string is escaped, and characters that can't be seen are replaced first.
"""

from __future__ import annotations

import base64
import hashlib
import json
import unicodedata
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from app.domain.roofline import PARTS
from app.domain.words import amount, figure, label, percent, quality_label
from worker.export import drawing, report_view

TEMPLATES = Path(__file__).with_name("templates")
LONGEST = 400
UNSEEN = frozenset({"Cc", "Cf", "Cs", "Co", "Zl", "Zp"})


def render(document: Mapping[str, Any]) -> bytes:
    """Return the page of a report (see `report_json`), as UTF-8. Equal documents give equal bytes.

    A document without `search` and `candidate` leaves out what they would tell.
    """
    told = cleaned(json.loads(json.dumps(document, sort_keys=True)))
    search, candidate = told.get("search") or {}, told.get("candidate") or {}
    front, layers, why = search.get("front"), candidate.get("layers") or [], candidate.get("why")
    text = (
        _environment()
        .get_template("report.html")
        .render(
            document=told,
            found=told["verification"],
            candidate=candidate,
            search=search,
            kind=report_view.kind_of(told),
            verdict=report_view.verdict(told),
            cards=report_view.cards(told),
            fronts=drawing.fronts(front, candidate["trial"]) if front else [],
            layers=layers,
            strips=drawing.strips(layers),
            curves=report_view.curves(search.get("sensitivity")),
            why=why,
            operations=report_view.operations(why) if why else [],
            checks=report_view.checks(told),
            steps=report_view.repair_steps(told),
            provenance=report_view.provenance(told),
            view=report_view,
        )
    )
    return text.encode()


def cleaned(value: Any) -> Any:
    """Return JSON with its texts cut to `LONGEST` characters, and what can't be seen in them replaced.

    Names come from uploaded files: controls, marks that turn the direction of writing, and halves of characters would
    show something else than what is there, or could not be written at all.
    """
    if isinstance(value, str):
        cut = value if len(value) <= LONGEST else value[: LONGEST - 1] + "…"
        return "".join("\ufffd" if unicodedata.category(item) in UNSEEN else item for item in cut)
    if isinstance(value, dict):
        return {cleaned(key): cleaned(item) for key, item in value.items()}
    return [cleaned(item) for item in value] if isinstance(value, list) else value


@cache
def _environment() -> Environment:
    made = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters.update(
        amount=lambda value, metric: amount(metric, value),
        figure=lambda value, metric: figure(metric, value),
        label=label,
        metric=quality_label,
        percent=percent,
        whole=lambda value: f"{value:,.0f}",
    )
    style = (TEMPLATES / "report.css").read_text()
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    made.globals.update(style=Markup(style), style_digest=digest, drawing=drawing, parts=PARTS)
    return made

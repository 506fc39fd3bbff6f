"""The dashboard's pages and the fragments they refresh."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Annotated, Any, get_args

from fastapi import APIRouter, Depends, Query, Request, Response
from fastapi.responses import FileResponse, JSONResponse
from fastapi.routing import APIRoute

from app.api.schemas import SamplerName
from app.commands import devicesheet
from app.domain.cost import METRICS
from app.domain.device import DeviceProfile
from app.domain.metrics import METRICS as QUALITIES
from app.domain.words import LABELS
from app.problems import PROBLEMS, Problem
from app.web import charts, view
from app.web.login import signed_in
from app.web.read import Reader, reader
from app.web.render import SANDBOX, page

Json = dict[str, Any]
Read = Annotated[Reader, Depends(reader)]
Axis = Annotated[str, Query(alias="x", pattern="^(latency_ms|weight_bytes|bops)$")]

EVENT_NAMES = "state progress trial candidate export"
_FINISHED = ("completed", "cancelled", "failed")


class PageRoute(APIRoute):
    """Shows a refusal as a page."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """Return the handler, refusals of which become pages."""
        handle = super().get_route_handler()

        async def shown(request: Request) -> Response:
            try:
                return await handle(request)
            except Problem as problem:
                title = PROBLEMS[problem.slug].title
                return page("problem.html", problem.status, title=title, detail=problem.detail)

        return shown


router = APIRouter(include_in_schema=False, dependencies=[Depends(signed_in)], route_class=PageRoute)


@router.get("/models")
def models(read: Read) -> Response:
    """Show the models and the place to drop a new one."""
    return page("models.html", here="/models", **_models(read))


@router.get("/web/models")
def models_table(read: Read) -> Response:
    """Refresh the table of models."""
    return page("_models.html", **_models(read))


@router.get("/models/{id}")
def model(id: str, read: Read) -> Response:
    """Show a model: facts, layers, channel groups, its weights versions; or why it was rejected."""
    found = read.model(id)
    rows = view.layer_rows(found["graph"]) if found.get("graph") else []
    return page(
        "model.html",
        here="/models",
        model=found,
        base_name=read.model_name(found["base_id"]) if found["base_id"] else "",
        versions=read.versions(id),
        refusals=view.refusal_rows(found["problem"] or {}),
        layers=rows,
        total_macs=sum(row["macs"] for row in rows),
    )


@router.get("/web/models/{id}")
def model_pending(id: str, read: Read) -> Response:
    """Tell whether a model has been read meanwhile."""
    return page("_model_pending.html", model=read.model(id))


@router.get("/datasets")
def datasets(read: Read) -> Response:
    """Show the datasets and the place to drop a new one."""
    return page("datasets.html", here="/datasets", **_datasets(read))


@router.get("/web/datasets")
def datasets_table(read: Read) -> Response:
    """Refresh the table of datasets."""
    return page("_datasets.html", **_datasets(read))


@router.get("/devices")
def devices(read: Read) -> Response:
    """Show the device profiles."""
    return page("devices.html", here="/devices", devices=read.devices())


@router.get("/devices/{id}")
def device(id: str, read: Read) -> Response:
    """Show a device profile: rules, roofline, calibrations, drift, figures with their sources, revisions."""
    found = read.device(id)
    profile = found["profile"]
    columns, rows = view.rules_grid(profile)
    return page(
        "device.html",
        here="/devices",
        device=found,
        revisions=read.revisions(found["name"]),
        facts=devicesheet.about(profile),
        columns=columns,
        rows=rows,
        compute=devicesheet.compute_rows(profile),
        figures=devicesheet.figure_rows(profile),
        calibrations=read.calibrations(found["name"]),
        accuracy=read.accuracy(profile),
    )


@router.get("/web/devices/{name}/calibrations")
def device_calibrations(name: str, read: Read) -> Response:
    """Refresh a device's calibrations."""
    return page("_calibrations.html", name=read.device(name)["name"], calibrations=read.calibrations(name))


@router.get("/web/devices/{id}/drift.json")
def device_drift(id: str, read: Read) -> Response:
    """Return the figure of predicted against measured latencies."""
    profile = read.device(id)["profile"]
    return JSONResponse(charts.drift(read.timed(profile), read.accuracy(profile).interval))


@router.get("/web/devices/{id}/roofline.json")
def device_roofline(id: str, read: Read) -> Response:
    """Return the roofline figure."""
    return JSONResponse(charts.roofline(DeviceProfile.from_json(read.device(id)["profile"])))


@router.get("/searches")
def searches(read: Read) -> Response:
    """Show the searches."""
    return page("searches.html", here="/searches", **_searches(read))


@router.get("/web/searches")
def searches_table(read: Read) -> Response:
    """Refresh the table of searches."""
    return page("_searches.html", **_searches(read))


@router.get("/searches/new")
def new_search(read: Read, model: str | None = None, like: str | None = None, limits: str = "") -> Response:
    """Show the form of a new search, filled in from another one (`like`) and with other limits where they are named."""
    ready = {noun: [item for item in items if item["state"] == "ready"] for noun, items in _uploads(read).items()}
    devices, before = read.devices(), None if like is None else read.search(like)
    given = view.filled_in(before, view.asked_limits(limits), {item["name"]: item["id"] for item in devices})
    if model is not None:
        given["model"] = model
    offered = {"metrics": METRICS, "qualities": QUALITIES, "samplers": get_args(SamplerName), **view.METHOD_FIELDS}
    return page("new.html", here="/searches", **ready, **offered, devices=devices, given=given)


@router.get("/searches/{id}")
def search(id: str, read: Read, axis: Axis = "bops") -> Response:
    """Show a search: progress or verdict, Pareto front, history, trials."""
    found = read.search(id)
    return page(
        "search.html",
        here="/searches",
        axis=axis,
        event_names=EVENT_NAMES,
        labels={**LABELS, **{name: view.heading(name) for name in QUALITIES}},
        whatif=view.sliders(found, read.reachable(id)),
        **_status(read, found),
        **_trials(read, found),
    )


@router.get("/web/searches/{id}/status")
def search_status(id: str, read: Read) -> Response:
    """Refresh the head of a search."""
    return page("_search_status.html", **_status(read, read.search(id)))


@router.get("/web/searches/{id}/trials")
def search_trials(id: str, read: Read) -> Response:
    """Refresh the trial table."""
    return page("_trials.html", **_trials(read, read.search(id)))


@router.get("/web/searches/{id}/pareto.json")
def pareto(id: str, read: Read, axis: Axis = "bops") -> Response:
    """Return the Pareto figure over one cost axis."""
    trials, found = read.trials(id), read.search(id)
    points = view.points(trials, read.candidates(id), found["metric"])
    limit = view.limits_of(found).get(axis)
    return JSONResponse(charts.pareto(points, axis, limit, view.quality_name(trials, found["metric"])))


@router.get("/web/searches/{id}/history.json")
def history(id: str, read: Read) -> Response:
    """Return the best-so-far figure."""
    trials, metric = read.trials(id), read.search(id)["metric"]
    return JSONResponse(charts.history(view.points(trials, metric=metric), view.quality_name(trials, metric)))


@router.get("/candidates/{id}")
def candidate(id: str, read: Read) -> Response:
    """Show a candidate: budget, quality, layers, verification, downloads."""
    found = read.candidate(id)
    owner = read.search(found["search_id"])
    return page(
        "candidate.html",
        here="/searches",
        candidate=found,
        search_name=owner["name"],
        quality_names=view.quality_columns(found),
        quality=view.quality_rows(found, owner.get("baseline") or {}),
        training=view.training_rows(found),
        rows=view.candidate_layers(found),
        checks=view.check_facts(found.get("report") or {}),
        notes=view.check_notes(found.get("report") or {}),
        why=read.why(id),
        has_report=any(item["kind"] == "report-html" for item in found["artefacts"]),
    )


@router.get("/candidates/{id}/report")
def candidate_report(id: str, read: Read) -> Response:
    """Show the report of a candidate's export. A worker made it from what was uploaded: it is shown in a sandbox."""
    return FileResponse(read.report(id), media_type="text/html; charset=utf-8", headers=SANDBOX)


@router.get("/web/candidates/{id}/why.json")
def candidate_why(id: str, read: Read) -> Response:
    """Return the figure of what each operation's time goes to."""
    return JSONResponse(charts.times(read.why(id) or {}))


@router.get("/web/candidates/{id}/layers.json")
def candidate_layers(id: str, read: Read) -> Response:
    """Return the per-layer figure."""
    return JSONResponse(charts.layers(view.bars(view.candidate_layers(read.candidate(id)))))


@router.get("/fleets")
def fleets(read: Read) -> Response:
    """Show the fleets."""
    return page("fleets.html", here="/fleets", **_fleets(read))


@router.get("/web/fleets")
def fleets_table(read: Read) -> Response:
    """Refresh the table of fleets."""
    return page("_fleets.html", **_fleets(read))


@router.get("/fleets/{id}")
def fleet(id: str, read: Read) -> Response:
    """Show a fleet: the search of each device, its progress and its best."""
    found = _fleet(read, id)
    return page(
        "fleet.html", here="/fleets", **found, model_name=read.model_name(found["fleet"]["request"]["model_id"])
    )


@router.get("/web/fleets/{id}")
def fleet_members(id: str, read: Read) -> Response:
    """Refresh a fleet."""
    return page("_fleet.html", **_fleet(read, id))


@router.get("/schedules")
def schedules(read: Read) -> Response:
    """Show the schedules, when they fired last and what came of it."""
    return page("schedules.html", here="/schedules", schedules=read.schedules())


@router.get("/system")
def system(read: Read) -> Response:
    """Show workers, storage and versions."""
    return page("system.html", here="/system", workers=read.workers(), facts=read.system())


def _models(read: Reader) -> Json:
    found = read.models()
    return {"models": found, "pending": _pending(found)}


def _datasets(read: Reader) -> Json:
    found = read.datasets()
    return {"datasets": found, "pending": _pending(found)}


def _searches(read: Reader) -> Json:
    found = read.searches()
    return {"searches": found, "pending": any(item["state"] not in _FINISHED for item in found)}


def _fleets(read: Reader) -> Json:
    found = read.fleets()
    return {"fleets": found, "pending": any(item["state"] not in _FINISHED for item in found)}


def _fleet(read: Reader, id: str) -> Json:
    found = read.fleet(id)
    return {"fleet": found, "pending": found["state"] not in _FINISHED}


def _pending(items: list[Json]) -> bool:
    return any(item["state"] == "inspecting" for item in items)


def _uploads(read: Reader) -> dict[str, list[Json]]:
    return {"models": read.models(), "datasets": read.datasets()}


def _status(read: Reader, found: Json) -> Json:
    candidates, baseline = read.candidates(found["id"]), found.get("baseline") or {}
    best = candidates[0] if candidates else found.get("best") or {}
    return {
        "search": {**found, **read.cautions(found["id"])},
        "finished": found["state"] in _FINISHED,
        "stages": view.stages(found),
        "best_id": best.get("id"),
        "best_quality": view.quality_text(best, found["metric"]),
        "best_costs": best.get("costs") or {},
        "baseline_quality": view.quality_text(baseline, found["metric"]) if baseline else "",
        "model_name": read.model_name(found["model_id"]),
        "device_name": read.device_name(found["device_id"]),
    }


def _trials(read: Reader, found: Json) -> Json:
    trials, metric = read.trials(found["id"]), found["metric"]
    rows = view.trial_rows(trials, read.candidates(found["id"]), metric)
    return {"trials": rows, "quality": view.quality_name(trials, metric)}

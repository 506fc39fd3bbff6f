"""The durable workflows: inspect, search, export, fire a schedule. The only place in worker, with engine.py, that knows
the engine. Arguments are ids; each workflow is idempotent, for it is run again after a kill."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Any

from dbos import DBOS, DBOSClient

from app import actions, queue
from app.domain.lifecycle import ModelState
from app.settings import Settings
from app.store import runner as rows
from app.store.blobs import Blobs
from app.store.engine import Database
from app.store.tables import Dataset, Model
from worker.finish import export_candidate
from worker.job import GivenUp, LostTrial, Site
from worker.runner import Runner
from worker.sandbox import Child, ChildDied, ChildRefused, Limits

Json = dict[str, Any]
log = logging.getLogger("tightfit.worker")
INSPECT_S = 300.0


@dataclass
class Context:
    """What the workflows of this process work with."""

    service: actions.Service
    site: Site

    @property
    def client(self) -> DBOSClient:
        """The durable engine's client."""
        return self.service.client


_context: Context | None = None


def install(settings: Settings, database: Database) -> None:
    """Give this process's workflows their settings and database."""
    global _context
    limits = Limits(memory_bytes=settings.child_memory_bytes)
    site = Site(database, Blobs(settings.blob_dir), limits, settings.trial_s, settings.slice_s)
    _context = Context(actions.Service(settings, database, site.blobs, queue.client(database)), site)


def context() -> Context:
    """Return what `install` set."""
    assert _context is not None, "install() comes first"
    return _context


@DBOS.workflow(name=queue.INSPECT_MODEL)
def inspect_model(model_id: str) -> None:
    """Read an uploaded network in a sandboxed child; store its picture or why it was rejected."""
    site = context().site
    with site.database.reading() as session:
        model = session.get(Model, model_id)
    if model is None or model.state != ModelState.inspecting:
        return
    answer = _inspected(site, "inspect", {"path": _path(site, model.blob_sha)})
    with site.database.writing() as session:
        row = session.get(Model, model_id)
        if row is None:
            return
        row.state, row.problem = answer["state"], answer.get("problem")
        if "result" in answer:
            row.format, row.graph = answer["result"]["format"], answer["result"]["graph"]


@DBOS.workflow(name=queue.INSPECT_DATASET)
def inspect_dataset(dataset_id: str) -> None:
    """Read an uploaded dataset in a sandboxed child; store its record or why it was rejected."""
    site = context().site
    with site.database.reading() as session:
        dataset = session.get(Dataset, dataset_id)
    if dataset is None or dataset.state != ModelState.inspecting:
        return
    answer = _inspected(site, "inspect_dataset", {"path": _path(site, dataset.blob_sha), "spec": dataset.spec})
    with site.database.writing() as session:
        row = session.get(Dataset, dataset_id)
        if row is not None:
            row.state, row.problem, row.info = answer["state"], answer.get("problem"), answer.get("result")


def _path(site: Site, sha256: str) -> str:
    return str(site.blobs.path(sha256))


def _inspected(site: Site, method: str, params: Json) -> Json:
    """Return {"state", "result"} or {"state", "problem"} of an inspection in a fresh child."""
    try:
        with Child(site.limits) as child:
            return {"state": ModelState.ready.value, "result": child.call(method, params, INSPECT_S)}
    except ChildRefused as refusal:
        return _rejected(refusal.slug, refusal.detail, refusal.errors)
    except ChildDied as death:
        return _rejected("inspection-failed", f"{death.kind}: {death.detail}", [])


def _rejected(slug: str, detail: str, errors: list[Json]) -> Json:
    title = slug.replace("-", " ").capitalize()
    problem = {"type": f"/problems/{slug}", "title": title, "status": 422, "detail": detail, "errors": errors}
    return {"state": ModelState.rejected.value, "problem": problem}


@DBOS.workflow(name=queue.RUN_SEARCH)
def run_search(search_id: str) -> None:
    """Work on a search for one slice; enqueue the next slice where it is not finished."""
    here = context()
    runner = Runner(here.site, search_id)
    try:
        end = runner.run()
    except LostTrial as lost:
        log.warning("search %s: trial %s belongs to another worker now", search_id, lost)
        return
    except Exception as error:  # the engine does not run a failed workflow again: the search must not seem to run
        log.exception("search %s failed", search_id)
        problem = {
            "type": "/problems/search-failed",
            "title": "Search failed",
            "detail": f"{type(error).__name__}: {error}",
        }
        with here.site.database.writing() as session:
            rows.fail(session, search_id, problem)
        return
    finally:
        runner.close()
    if end == "again":
        with here.site.database.writing() as session:
            queue.enqueue_slice(here.client, session, search_id)


@DBOS.workflow(name=queue.EXPORT_CANDIDATE)
def export_one(candidate_id: str) -> None:
    """Export and verify one candidate on request."""
    here = context()
    with here.site.database.reading() as session:
        row = rows.candidate(session, candidate_id)
        trial = None if row is None else rows.trial_of(session, row.search_id, row.trial_idx)
    if row is None or trial is None:
        return
    runner = Runner(here.site, row.search_id)
    try:
        runner.export(candidate_id, trial)
    except GivenUp as reason:
        with here.site.database.writing() as session:
            rows.export_failed(session, candidate_id, reason.problem)
    finally:
        runner.close()


@DBOS.workflow(name=queue.FIRE_SCHEDULE)
def fire_schedule(at: Any, schedule_id: Any) -> None:
    """Create the search a schedule asks for; a tick is one workflow, so it fires once."""
    actions.fire_schedule(context().service, str(schedule_id))


__all__ = ["export_candidate", "install", "run_search"]

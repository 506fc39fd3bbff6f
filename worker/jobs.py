"""The durable workflows: inspect, search, export, calibrate, fire a schedule; with engine.py all that knows the engine.

Arguments are ids; each workflow is idempotent, for it is run again after a kill.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib.util import find_spec
from typing import Any, TypeVar

from dbos import DBOS, DBOSClient

from app import actions, fleets, logs, queue
from app.domain.lifecycle import ModelState
from app.settings import Settings
from app.store import runner as rows
from app.store.blobs import Blobs
from app.store.engine import Database, is_away
from app.store.tables import Dataset, Model
from worker.calibration import Calibrator
from worker.job import GivenUp, LostTrial, Site, problem, weights_file
from worker.outlast import outlasting
from worker.room import is_full
from worker.runner import Runner
from worker.sandbox import Child, ChildDied, ChildRefused, Limits

Json = dict[str, Any]
log = logging.getLogger("tightfit.worker")
INSPECT_S = 300.0
MAX_DEATHS = 3
"""Of workers at one inspection or export; searches count their own (worker.runner)."""
Upload = TypeVar("Upload", Model, Dataset)


@dataclass
class Context:
    """What the workflows of this process work with."""

    service: actions.Service
    site: Site
    running: set[Runner] = field(default_factory=set)  #: searches that this process works on

    @property
    def client(self) -> DBOSClient:
        """The durable engine's client."""
        return self.service.client


_context: Context | None = None


def install(settings: Settings, database: Database) -> None:
    """Give this process's workflows their settings and database."""
    global _context
    # verifications ask OpenVINO, where it is installed, in a process of its own
    limits = Limits(memory_bytes=settings.child_memory_bytes, alone=find_spec("openvino") is None)
    blobs = Blobs(settings.blob_dir)
    site = Site(database, blobs, limits, settings.trial_s, settings.slice_s, disk_floor_bytes=settings.disk_floor_bytes)
    _context = Context(actions.Service(settings, database, blobs, queue.client(database)), site)


def context() -> Context:
    """Return what `install` set."""
    assert _context is not None, "install() comes first"
    return _context


@DBOS.workflow(name=queue.INSPECT_MODEL, max_recovery_attempts=MAX_DEATHS)
@outlasting
def inspect_model(model_id: str) -> None:
    """Read an uploaded network in a sandboxed child; store its picture or why it was rejected."""

    def store(row: Model, result: Json) -> None:
        row.format, row.graph, row.warnings = result["format"], result["graph"], result["warnings"]

    _inspect(Model, model_id, "inspect", store)


@DBOS.workflow(name=queue.INSPECT_DATASET, max_recovery_attempts=MAX_DEATHS)
@outlasting
def inspect_dataset(dataset_id: str) -> None:
    """Read an uploaded dataset in a sandboxed child; store its record or why it was rejected."""

    def store(row: Dataset, result: Json) -> None:
        row.info = result

    _inspect(Dataset, dataset_id, "inspect_dataset", store)


def _inspect(table: type[Upload], key: str, method: str, store: Callable[[Upload, Json], None]) -> None:
    """Inspect an upload in a fresh child; `store` takes the result into its row."""
    site = context().site
    with site.database.reading() as session:
        upload = session.get(table, key)
    if upload is None or upload.state != ModelState.inspecting:
        return
    params: Json = {"path": str(site.blobs.path(upload.blob_sha))}
    if isinstance(upload, Dataset):
        params["spec"] = upload.spec
    else:
        params["weights"] = weights_file(site, upload)
    result, refused = _inspected(site, method, params)
    with site.database.writing() as session:
        row = session.get(table, key)
        if row is None:
            return
        row.state, row.problem = ModelState.rejected if refused else ModelState.ready, refused
        if result is not None:
            store(row, result)


def _inspected(site: Site, method: str, params: Json) -> tuple[Json | None, Json | None]:
    """Return (result, None) or (None, problem) of a call in a fresh child."""
    try:
        with Child(site.limits) as child:
            return child.call(method, params, INSPECT_S), None
    except ChildRefused as refusal:
        return None, problem(refusal.slug, refusal.detail, refusal.errors)
    except ChildDied as death:
        return None, problem("inspection-failed", f"{death.kind}: {death.detail}")


@DBOS.workflow(name=queue.RUN_SEARCH)
@outlasting
def run_search(search_id: str, slot: str = "0") -> None:
    """Work on a search for one slice, as one of its runners; enqueue the next slice where it is not finished."""
    here = context()
    runner = Runner(here.site, search_id, int(slot))
    here.running.add(runner)
    try:
        with logs.bind(search_id=search_id, slot=slot):
            end = runner.run()
    except LostTrial as lost:
        log.warning("lease-lost: search %s, %s is another worker's now", search_id, lost)
        return
    except Exception as error:  # the engine does not run a failed workflow again: the search must not seem to run
        if is_away(error):
            raise
        if is_full(error):  # not even the pause could be written: mending takes the search up again
            log.error("search %s: no room for anything", search_id)
            return
        log.exception("search %s failed", search_id)
        with here.site.database.writing() as session:
            rows.fail(session, search_id, problem("search-failed", f"{type(error).__name__}: {error}"))
        end = "finished"
    finally:
        here.running.discard(runner)
        runner.close()
    if end == "finished":
        fleets.start_members(here.service, search_id)
    if end == "again":
        with here.site.database.writing() as session:
            queue.enqueue_slice(here.client, session, search_id, int(slot))


@DBOS.workflow(name=queue.EXPORT_CANDIDATE, max_recovery_attempts=MAX_DEATHS)
@outlasting
def export_one(candidate_id: str, opset: str = "") -> None:
    """Export and verify one candidate on request, at its search's ONNX opset unless another is named."""
    here = context()
    with here.site.database.reading() as session:
        row = rows.candidate(session, candidate_id)
        trial = None if row is None else rows.trial_of(session, row.search_id, row.trial_idx)
    if row is None or trial is None:
        return
    runner = Runner(here.site, row.search_id)
    try:
        runner.export(candidate_id, trial, int(opset) if opset else None)
    except GivenUp as reason:
        with here.site.database.writing() as session:
            rows.export_failed(session, candidate_id, reason.problem)
    finally:
        runner.close()


@DBOS.workflow(name=queue.CALIBRATE)
@outlasting
def calibrate(calibration_id: str) -> None:
    """Measure a device and store what was learnt as the next revision of its profile."""
    calibrator = Calibrator(context().site, calibration_id)
    try:
        calibrator.run()
    except Exception as error:  # the engine does not run a failed workflow again: it must not seem to run
        if is_away(error):
            raise
        log.exception("calibration %s failed", calibration_id)
        calibrator.fail(f"{type(error).__name__}: {error}")


@DBOS.workflow(name=queue.FIRE_SCHEDULE)
@outlasting
def fire_schedule(at: Any, schedule_id: Any) -> None:
    """Create the search a schedule asks for; a tick is one workflow, so it fires once."""
    actions.fire_schedule(context().service, str(schedule_id))

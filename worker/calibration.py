"""Calibrating a device: a plan from the sandbox, times from here or from an agent, a table, the next revision.

After a kill it starts anew; what an agent has measured is found again in its jobs.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any

from app.store import devices, measuring
from app.store.tables import Agent, Calibration, Device, Model
from worker.hardware.measure import Latency
from worker.hardware.measuring import Bench, LocalMeasurer, Measurer
from worker.hardware.remote import RemoteMeasurer, Waiting
from worker.hardware.rounds import timed_in_rounds
from worker.job import Cancelled, GivenUp, Site, problem, weights_file
from worker.sandbox import Child, ChildDied, ChildRefused

Json = dict[str, Any]
PLAN_S, FIT_S = 600.0, 600.0


class Calibrator:
    """Drives one calibration; `effort` overrides how much is measured."""

    def __init__(self, site: Site, calibration_id: str, effort: Json | None = None) -> None:
        self._site, self._id, self._effort = site, calibration_id, effort or {}

    def run(self) -> None:
        """Calibrate, and keep how it ended in the row."""
        with self._site.database.writing() as session:
            row = measuring.begin(session, self._id)
            if row is None:
                return
        try:
            self._calibrate(row)
        except Cancelled:
            self._conclude("cancelled")
        except GivenUp as reason:
            self._conclude("failed", reason.problem)
        except ChildRefused as refusal:
            self._conclude("failed", problem(refusal.slug, refusal.detail, refusal.errors))
        except ChildDied as death:
            self._conclude("failed", problem("calibration-failed", f"{death.kind}: {death.detail}"))

    def fail(self, detail: str) -> None:
        """Keep a fault that nothing foresaw."""
        self._conclude("failed", problem("calibration-failed", detail))

    def _conclude(self, state: str, why: Json | None = None) -> None:
        with self._site.database.writing() as session:
            measuring.conclude(session.get_one(Calibration, self._id), state, why)

    def _calibrate(self, row: Calibration) -> None:
        base, models = self._inputs(row)
        with tempfile.TemporaryDirectory(prefix="tightfit-calibration-") as folder, Child(self._site.limits) as child:
            self._progress("planning", 0, 0)
            measurer = self._measurer(row)
            told = {"effort": self._effort, "conditions": measurer.conditions()}
            params = {"models": models, "folder": folder, **told}
            items = child.call("plan_calibration", params, PLAN_S, self._is_cancelled)["items"]
            found = self._measured(measurer, items)
            self._progress("fitting", len(items), len(items))
            latencies = {key: item.to_json() for key, item in found.items()}
            told = {"found": latencies, "conditions": measurer.conditions(), "device": base.profile}
            made = child.call("fit_calibration", told, FIT_S, self._is_cancelled)
        self._keep(base, made)

    def _inputs(self, row: Calibration) -> tuple[Device, Json]:
        """Return the revision to start from, and where the networks' files are."""
        with self._site.database.reading() as session:
            base = session.get(Device, row.base_id)
            models = [session.get(Model, key) for key in row.model_ids]
        if base is None or None in models:
            raise GivenUp(problem("not-found", "the device or a model was deleted"))
        files = {
            model.id: {"path": str(self._site.blobs.path(model.blob_sha)), "weights": weights_file(self._site, model)}
            for model in models
            if model is not None
        }
        return base, files

    def _measurer(self, row: Calibration) -> Measurer:
        if row.agent_id is None:
            return LocalMeasurer()
        waiting = Waiting(owner=row.id, is_cancelled=self._is_cancelled)
        return RemoteMeasurer(self._site, row.agent_id, waiting=waiting)

    def _measured(self, measurer: Measurer, items: Sequence[Json]) -> dict[str, Latency]:
        """Return the latency of every planned network, each batch timed together with the last as the reference."""

        def progress(done: int, total: int) -> None:
            if self._is_cancelled():
                raise Cancelled
            self._progress("measuring", done, total)

        return timed_in_rounds(measurer, items, _bench, progress)

    def _progress(self, stage: str, done: int, total: int) -> None:
        with self._site.database.writing() as session:
            row = session.get_one(Calibration, self._id)
            row.stage, row.progress_done, row.progress_total = stage, done, total

    def _is_cancelled(self) -> bool:
        with self._site.database.reading() as session:
            row = session.get(Calibration, self._id)
        return row is None or row.desired == "cancel"

    def _keep(self, base: Device, made: Json) -> None:
        """Store the table as the next revision of the profile, and the calibration as done, in one transaction."""
        with self._site.database.writing() as session:
            row = session.get_one(Calibration, self._id)
            agent = None if row.agent_id is None else session.get(Agent, row.agent_id)
            profile = calibrated(base.profile, made, self._id, None if agent is None else agent.name)
            row.device_id = devices.add_revision(session, profile, row.owner_id).id
            row.table, row.report, row.progress_done = made["table"], made["report"], row.progress_total
            measuring.conclude(row, "done")


def calibrated(profile: Mapping[str, Any], made: Json, calibration_id: str, agent: str | None) -> Json:
    """Return a profile with a measured latency table: what it predicts from now on is interpolated."""
    record = deepcopy(dict(profile))
    evidence = dict(record.get("evidence") or {})
    told = f"calibration {calibration_id} on {agent or 'the host of the worker'}"
    evidence["kind"], evidence["error_p90"] = "interpolated", made["error_p90"]
    kept = [item for item in evidence.get("sources", []) if not item.startswith("calibration cal_")]
    evidence["sources"] = [*kept, told]
    figure = {"source": told, "confidence": "measured"}
    evidence["figures"] = {**(evidence.get("figures") or {}), "/latency_table": figure}
    rules = {**record["rules"], "saturating_pairs": made["table"]["saturating"]}
    return {**record, "rules": rules, "evidence": evidence, "latency_table": made["table"]}


def _bench(item: Json) -> Bench:
    return Bench.told(item["id"], Path(item["path"]).read_bytes(), item["inputs"])

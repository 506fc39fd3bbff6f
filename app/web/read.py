"""Everything the pages read, in the same shapes as the API answers with."""

from __future__ import annotations

import shutil
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any

from fastapi import Depends, Request

from app.actions import Service
from app.api import shapes
from app.api.auth import Key
from app.api.calibrations import shape as calibration
from app.api.devices import device_of
from app.domain.drift import Accuracy, Pair
from app.domain.lifecycle import Outcome, SearchState
from app.domain.words import amount
from app.explaining import cautions_of, why
from app.problems import Problem
from app.store import query, timings
from app.store.tables import Calibration, Candidate, Dataset, Device, Fleet, Model, Schedule, Search, now
from app.web.login import signed_in
from app.web.view import moment

Json = dict[str, Any]
SHOWN = 200
ALL_TRIALS = 100_000


class Reader:
    """Reads what a key sees in short transactions. Raises Problem not-found for an id unknown to it."""

    def __init__(self, service: Service, key: Key) -> None:
        self._service, self._key = service, key
        self._database = service.database

    def models(self) -> list[Json]:
        """Return the newest models."""
        return [shapes.model(row) for row in self._page(Model)]

    def model(self, id: str) -> Json:
        """Return one model."""
        return shapes.model(self._one(Model, id))

    def versions(self, id: str) -> list[Json]:
        """Return the newest weights versions made from a model."""
        with self._database.reading() as session:
            return [shapes.model(row) for row in query.page(session, Model, SHOWN, base_id=id, sight=self._key.sight)]

    def datasets(self) -> list[Json]:
        """Return the newest datasets."""
        return [shapes.dataset(row) for row in self._page(Dataset)]

    def devices(self) -> list[Json]:
        """Return the newest revision of each device profile, built-in ones first."""
        newest: dict[str, Json] = {}
        for row in self._page(Device):
            known = newest.get(row.name)
            if known is None or row.revision > known["revision"]:
                newest[row.name] = shapes.device(row)
        return sorted(newest.values(), key=lambda item: (not item["builtin"], item["name"]))

    def device(self, key: str) -> Json:
        """Return a device profile by name, `name@revision` or id."""
        with self._database.reading() as session:
            return shapes.device(device_of(session, self._key, key))

    def revisions(self, name: str) -> list[Json]:
        """Return the revisions of a device profile, newest first."""
        with self._database.reading() as session:
            return [shapes.device(row) for row in query.revisions(session, name, self._key.sight)]

    def calibrations(self, name: str) -> list[Json]:
        """Return the newest calibrations of a device profile."""
        with self._database.reading() as session:
            rows = query.page(session, Calibration, SHOWN, device=name, sight=self._key.sight)
            return [calibration(row) for row in rows]

    def timed(self, profile: Json) -> list[Pair]:
        """Return (predicted, measured) milliseconds of the files timed with a profile's revision."""
        with self._database.reading() as session:
            return timings.pairs(session, profile, self._key.owner_id)

    def accuracy(self, profile: Json) -> Accuracy:
        """Return how far a profile's predictions lie from what was measured."""
        with self._database.reading() as session:
            return timings.accuracy(session, profile, self._key.owner_id)

    def searches(self) -> list[Json]:
        """Return the newest searches."""
        return [shapes.search(row) for row in self._page(Search)]

    def schedules(self) -> list[Json]:
        """Return the newest schedules."""
        return [shapes.schedule(row) for row in self._page(Schedule)]

    def search(self, id: str) -> Json:
        """Return one search."""
        return shapes.search(self._one(Search, id))

    def cautions(self, id: str) -> Json:
        """Return what a search's figures can't be trusted in."""
        return cautions_of(self._service, self._one(Search, id))

    def reachable(self, id: str) -> Json | None:
        """Return the costs that bound and scale a search's limits: of `least`, `w8a8` and `float` (None: not begun)."""
        found: Json | None = self._one(Search, id).reachable
        return found

    def fleets(self) -> list[Json]:
        """Return the newest fleets."""
        return [self._fleet(row) for row in self._page(Fleet)]

    def fleet(self, id: str) -> Json:
        """Return one fleet: its members by device, and how many of them have ended, and inside their budgets."""
        return self._fleet(self._one(Fleet, id))

    def _fleet(self, row: Fleet) -> Json:
        with self._database.reading() as session:
            found = shapes.fleet(row, query.members(session, row.id))
        members = [{**item, "device_name": self.device_name(item["device_id"])} for item in found["members"]]
        ended = sum(SearchState(item["state"]).is_finished for item in members)
        feasible = sum(item["outcome"] == Outcome.feasible for item in members)
        return {**found, "members": members, "finished": ended, "feasible": feasible}

    def trials(self, id: str) -> list[Json]:
        """Return the trials of a search in order."""
        with self._database.reading() as session:
            return [shapes.trial(row) for row in query.trials(session, id, limit=ALL_TRIALS)]

    def candidates(self, id: str) -> list[Json]:
        """Return the candidates of a search, best first, without their artefacts."""
        with self._database.reading() as session:
            return [shapes.candidate(row, ()) for row in query.candidates(session, id)]

    def candidate(self, id: str) -> Json:
        """Return one candidate with its artefacts."""
        row = self._one(Candidate, id)
        with self._database.reading() as session:
            search = session.get_one(Search, row.search_id)
            accuracy = timings.accuracy(session, search.device, search.owner_id)
            return {**shapes.candidate(row, query.artefacts(session, id)), "latency": shapes.latency(row, accuracy)}

    def report(self, id: str) -> Path:
        """Return the file of a candidate's report. Raises Problem not-found where there is none (yet)."""
        found = next((item for item in self.candidate(id)["artefacts"] if item["kind"] == "report-html"), None)
        if found is None:
            raise Problem("not-found", "the candidate has no report yet: export it on its page")
        path = self._service.blobs.path(found["sha256"])
        if not path.exists():
            raise Problem("blob-corrupt", "the stored file is gone")
        return path

    def why(self, id: str) -> Json | None:
        """Return what a candidate's time goes to (None where its network was deleted)."""
        self._one(Candidate, id)
        try:
            return why(self._service, id)
        except Problem:
            return None

    def model_name(self, id: str) -> str:
        """Return a model's name, or its id where it was deleted."""
        with self._database.reading() as session:
            row = query.find(session, Model, id, self._key.sight)
        return id if row is None else row.name

    def device_name(self, id: str) -> str:
        """Return the name and revision of a device profile."""
        with self._database.reading() as session:
            row = session.get(Device, id)
        return id if row is None else f"{row.name}@{row.revision}"

    def workers(self) -> list[Json]:
        """Return the workers, and whether each was heard of lately."""
        silence = self._service.settings.worker_silence_s
        with self._database.reading() as session:
            rows = query.workers(session)
        return [
            {
                **shapes.worker(row),
                "alive": (now() - row.last_seen).total_seconds() < silence,
                "seen": moment(shapes.moment(row.last_seen)),
            }
            for row in rows
        ]

    def system(self) -> list[tuple[str, str]]:
        """Return facts about the service: version, database, disk, rows by state."""
        settings = self._service.settings
        with self._database.reading() as session:
            counts = {
                table.__tablename__: query.counts(session, table, self._key.sight) for table in (Model, Dataset, Search)
            }
        facts = [
            ("Version", version("tightfit")),
            ("Database", "SQLite" if settings.is_sqlite else "PostgreSQL"),
            ("Data folder", str(settings.data_dir)),
            ("Disk free", amount("weight_bytes", shutil.disk_usage(settings.data_dir).free)),
        ]
        return facts + [(f"{noun.capitalize()} rows", _by_state(found)) for noun, found in counts.items()]

    def _page(self, table: Any) -> list[Any]:
        with self._database.reading() as session:
            return list(query.page(session, table, SHOWN, sight=self._key.sight))

    def _one(self, table: Any, id: str) -> Any:
        with self._database.reading() as session:
            row = query.find(session, table, id, self._key.sight)
        if row is None:
            raise Problem("not-found", f"no {table.__tablename__} {id!r}")
        return row


async def reader(request: Request, key: Annotated[Key, Depends(signed_in)]) -> Reader:
    """Return the reader of a request's service, for who is signed in."""
    return Reader(request.app.state.service, key)


def _by_state(counts: dict[str, int]) -> str:
    return ", ".join(f"{number} {state}" for state, number in sorted(counts.items())) or "none"

"""One search as its runner sees it, where the runner works, and the ways it may end early."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy.orm import Session

from app.actions import space_spec
from app.domain.budget import Budget
from app.domain.cost import count
from app.domain.demand import Demand, demand_of
from app.domain.device import DeviceProfile
from app.domain.graph import ModelGraph
from app.domain.methods import Method, method_of
from app.domain.metrics import Labels, default_metric, labelled
from app.domain.opsets import DEFAULT
from app.domain.owners import DEFAULT as DEFAULT_OWNER
from app.domain.space import build_space, widest
from app.store import runner as rows
from app.store.blobs import Blobs
from app.store.engine import Database
from app.store.tables import Dataset, Model
from worker.processor import CPU, here
from worker.sandbox import Limits
from worker.search.rows import Goal, Settings, Stop

Json = dict[str, Any]
MAX_PROBES = 240
NO_DATA = "synthetic 1"
"""What stands for the data of searches without any, in the key of shared measurements; the number is that of
`worker.synthetic`: other inputs, other measurements."""
MAX_DETAIL, MAX_ERROR = 4000, 500


def _nothing(_session: Session) -> None:
    """Note nothing: what is done outside a runner's slot counts no deaths."""


@dataclass(frozen=True)
class Site:
    """Where a runner works: the database, the blobs, the child's limits, seconds per trial and per slice."""

    database: Database
    blobs: Blobs
    limits: Limits = field(default_factory=Limits)
    trial_s: float = 600.0
    slice_s: float = 300.0
    progressed: Callable[[Session], None] = _nothing
    """Notes in a transaction that something came of a runner's work."""
    disk_floor_bytes: int = 0


class Cancelled(Exception):
    """The user cancelled the search."""


class Paused(Exception):
    """The user wants the search to pause."""


class GivenUp(Exception):
    """The search can't go on; `problem` says why."""

    def __init__(self, problem: Json) -> None:
        super().__init__(problem.get("detail", ""))
        self.problem = problem


def problem(slug: str, detail: str, errors: Sequence[Json] = ()) -> Json:
    """Return the problem document that a record keeps of a refusal or failure.

    Names in it come from uploaded files: texts are cut, and what UTF-8 can't hold is replaced.
    """
    title = slug.replace("-", " ").capitalize()
    told = [{key: _text(str(value), MAX_ERROR) for key, value in error.items()} for error in errors]
    return {
        "type": f"/problems/{slug}",
        "title": title,
        "status": 422,
        "detail": _text(detail, MAX_DETAIL),
        "errors": told,
    }


def _text(text: str, longest: int) -> str:
    """Return at most `longest` characters that any database and answer can carry."""
    cut = text if len(text) <= longest else text[: longest - 3] + "..."
    return cut.replace("\0", "\ufffd").encode("utf-8", "replace").decode()


class LostTrial(RuntimeError):
    """Another worker took the trial: this one stops without a trace."""


class Ended(Exception):
    """Another runner of the search ended it."""


@dataclass(frozen=True)
class Warm:
    """What a search may start from: others' measurements, and for a later member of a fleet the first one's table."""

    wanted: bool = False
    fleet_id: str | None = None
    place: int = 0


@dataclass
class Job:
    """One search as the runner sees it: what it was asked, and its files."""

    search_id: str
    spec: Json
    goal: Goal
    settings: Settings
    opening: Json
    digests: tuple[str, str]
    started: float
    wall_s: float | None
    export_top: int
    names: Json = field(default_factory=dict)
    demand: Demand | None = None
    runners: int = 1
    warm: Warm = field(default_factory=lambda: Warm())
    polish: bool = True
    metric: str = "kl"
    classes: int | None = None
    processor: str = CPU
    methods: tuple[Method, ...] = ()
    opset: int = DEFAULT
    extended: Json | None = None


def pictures(macs: int) -> dict[str, int]:
    """Return how many pictures each stage looks at: all that help for small networks, fewer the more MACs one costs."""
    macs = max(1, macs)
    return {
        "calibration": min(512, max(64, 20_000_000_000 // macs)),
        "screen": min(256, max(32, 6_000_000_000 // macs)),
        "full": min(2048, max(128, 50_000_000_000 // macs)),
        "thorough": min(4096, max(64, 40_000_000_000 // macs)),
        "fast": min(128, max(16, 4_000_000_000 // macs)),
    }


def load_job(site: Site, search_id: str) -> Job:
    """Read what a search asks for and where its files are."""
    with site.database.reading() as session:
        search = rows.search_of(session, search_id)
        model, datasets = rows.model_of(session, search), rows.datasets_of(session, search)
        assert model.graph is not None
        graph, device = ModelGraph.from_json(model.graph), DeviceProfile.from_json(search.device)
        spec = rows.asked(search)
        goal = Goal(graph, build_space(graph, device, space_spec(spec)), device, Budget(search.limits))
        files = {
            role: {"path": str(site.blobs.path(item.blob_sha)), "spec": item.spec} for role, item in datasets.items()
        }
        opening: Json = {
            "model": str(site.blobs.path(model.blob_sha)),
            "weights": weights_file(site, model),
            "datasets": files,
            "device": search.device,
            "options": pictures(count(graph, widest(graph, 32), device).macs),
        }
        processor = (search.provenance or {}).get("processor") or here(site.limits)
        opening["processor"] = processor
        data_key = (
            NO_DATA
            if not datasets
            else json.dumps([[role, d.blob_sha, d.spec] for role, d in sorted(datasets.items())], sort_keys=True)
        )
        if search.owner_id != DEFAULT_OWNER:  # measurements are shared among one owner's searches alone
            data_key = json.dumps([search.owner_id, data_key])
        names: Json = {
            "model": model.name,
            "model_sha256": model.blob_sha,
            "weights_sha256": model.weights_sha,
            "device": search.device.get("name"),
            "datasets": {role: item.blob_sha for role, item in datasets.items()},
        }
        return Job(
            search_id,
            spec,
            goal,
            search_settings(spec),
            opening,
            (network_digest(model), hashlib.sha256(data_key.encode()).hexdigest()),
            (search.started_at or search.created_at).timestamp() + search.paused_s,
            (spec.get("search") or {}).get("max_wall_s"),
            int(spec.get("export_top", 1)),
            names,
            demand_of(spec),
            int((spec.get("search") or {}).get("runners") or 1),
            Warm(bool((spec.get("search") or {}).get("warm_start")), search.fleet_id, search.place or 0),
            bool(spec.get("polish", True)),
            *_judged_by(spec, graph, datasets),
            processor,
            tuple(method_of(item) for item in spec.get("methods") or ()),
            (spec.get("export") or {}).get("opset", DEFAULT),
            search.extended,
        )


def _judged_by(spec: Json, graph: ModelGraph, datasets: Mapping[str, Dataset]) -> tuple[str, int | None]:
    """Return a search's metric (its data's default where its request is older than metrics are), and how many classes
    the labels tell apart, where they fit an output."""
    judging = datasets.get("all") or datasets.get("evaluation")
    labels = None if judging is None else Labels.of(judging.info or {})
    fits = labels is not None and labelled(graph.outputs, labels) is not None
    return spec.get("metric") or default_metric(graph.outputs, labels), labels.classes if labels and fits else None


def weights_file(site: Site, model: Model) -> str | None:
    """Return the path of a weights version's weights; None for a network that holds its own."""
    return None if model.weights_sha is None else str(site.blobs.path(model.weights_sha))


def network_digest(model: Model) -> str:
    """Return what tells a network from every other: the digest of its file, and of its weights where they are apart."""
    return model.blob_sha if model.weights_sha is None else f"{model.blob_sha}+{model.weights_sha}"


def search_settings(spec: Json) -> Settings:
    """Return the loop's settings a request asks for."""
    data = spec.get("search") or {}
    return Settings(
        max_probes=MAX_PROBES,
        trials=int(data.get("trials") or 60),
        seed=int(data.get("seed") or 0),
        sampler=data.get("sampler") or "tpe",
        stop=_stop(data.get("stop") or {}),
        axes=tuple(data.get("axes") or ("kl", spec["limits"][0]["metric"])) if data.get("goal") == "front" else (),
    )


def _stop(data: Json) -> Stop:
    target = data.get("target")
    wanted = None if target is None else (target["metric"], float(target["value"]))
    return Stop(data.get("patience"), wanted, Stop.growth if data.get("growth") is None else data["growth"])

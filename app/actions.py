"""The verbs behind REST, pages and schedules: each checks, writes and enqueues in one transaction."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields, replace
from typing import Any, TypeVar

from dbos import DBOSClient
from sqlalchemy.orm import Session

from app import queue
from app.checking import check_datasets, check_measurable, check_names, check_quota, ready, searchable, settled
from app.domain import drift, ids, owners, turns
from app.domain.budget import Budget, Limit, Reach, reach, resolve
from app.domain.demand import demand_of
from app.domain.device import DeviceProfile
from app.domain.fallback import cautions, fallen_back
from app.domain.graph import ModelGraph
from app.domain.lifecycle import ModelState, SearchState
from app.domain.opsets import DEFAULT, OpsetTooLow, check_opset, widths_of
from app.domain.space import Assignment, BitRule, SearchSpace, SpaceSpec, build_space
from app.domain.wallclock import is_same_hour_again
from app.problems import Problem, field_error
from app.settings import Settings
from app.store import blobs, devices, events, query, timings
from app.store.blobs import Blobs
from app.store.engine import Database, afterwards
from app.store.tables import Candidate, Dataset, Device, Model, Schedule, Search, now

Json = dict[str, Any]
Upload = TypeVar("Upload", Model, Dataset)


@dataclass(frozen=True)
class Service:
    """What every verb works with."""

    settings: Settings
    database: Database
    blobs: Blobs
    client: DBOSClient


@dataclass(frozen=True)
class Member:
    """A search's place in a fleet."""

    fleet_id: str
    place: int


def create_model(service: Service, owner_id: str, name: str, format: str, sha256: str, size: int) -> Model:
    """Record an uploaded network and enqueue its inspection."""
    row = Model(id=ids.new_id("model"), name=name, format=format, blob_sha=sha256, bytes=size, owner_id=owner_id)
    with service.database.writing() as session:
        blobs.record(session, sha256, size)
        return _inspecting(service, session, row, queue.INSPECT_MODEL)


def create_weights(service: Service, owner_id: str, base_id: str, name: str | None, sha256: str, size: int) -> Model:
    """Record a weights version of a model that is ready, under its name where none is given; enqueue its inspection.

    Raises Problem not-found or model-not-ready.
    """
    with service.database.writing() as session:
        base = ready(session, Model, base_id, "model-not-ready", owner_id)
        blobs.record(session, sha256, size)
        row = Model(id=ids.new_id("model"), name=name or base.name, format=base.format, blob_sha=base.blob_sha)
        row.bytes, row.base_id, row.weights_sha, row.weights_bytes = base.bytes, base.id, sha256, size
        row.owner_id = owner_id
        return _inspecting(service, session, row, queue.INSPECT_MODEL)


def create_dataset(service: Service, owner_id: str, name: str, spec: Json, sha256: str, size: int) -> Dataset:
    """Record an uploaded dataset and enqueue its inspection."""
    row = Dataset(id=ids.new_id("dataset"), name=name, blob_sha=sha256, bytes=size, spec=spec, owner_id=owner_id)
    with service.database.writing() as session:
        blobs.record(session, sha256, size)
        return _inspecting(service, session, row, queue.INSPECT_DATASET)


def _inspecting(service: Service, session: Session, row: Upload, workflow: str) -> Upload:
    row.state, row.created_at = ModelState.inspecting, now()
    session.add(row)
    session.flush()
    queue.enqueue(service.client, session, workflow, f"{row.id}-inspect", row.id)
    return row


def push_device(service: Service, owner_id: str, profile: Json) -> tuple[Device, bool]:
    """Store an owner's checked device profile; return its revision and whether it is new.

    A known name gets its next revision, unless the newest one says the same. Raises Problem invalid-device-profile for
    the name of a built-in profile.
    """
    with service.database.writing() as session:
        before = query.device(session, profile["name"], owner_id)
        if before is None:
            return devices.add_revision(session, profile, owner_id), True
        if before.builtin:
            detail = f"{profile['name']!r} is a built-in profile; give yours another name"
            raise Problem("invalid-device-profile", detail, [field_error("/name", detail)])
        if _same_profile(before.profile, profile):
            return before, False
        return devices.add_revision(session, profile, owner_id), True


def ensure_devices(service: Service, profiles: Iterable[Json]) -> None:
    """Store the built-in profiles under their names; one that changed becomes the next revision."""
    with service.database.writing() as session:
        for profile in profiles:
            before = query.builtin_device(session, profile["name"])
            if before is None or not _same_profile(before.profile, profile):
                devices.add_revision(session, profile, owner_id=None)


def _same_profile(one: Json, other: Json) -> bool:
    """Tell whether two records say the same (defaults that only one of them writes out are no difference)."""
    return DeviceProfile.from_json(one) == DeviceProfile.from_json(other)


def refit_device(service: Service, owner_id: str, key: str) -> Device:
    """Store an owner's next revision of a profile, scaled to what was measured with this one.

    Raises Problem: not-found, not-enough-measurements.
    """
    with service.database.writing() as session:
        before = _device(session, key, owner_id)
        try:
            profile = drift.refit(before.profile, timings.pairs(session, before.profile, owner_id))
        except ValueError as error:
            raise Problem("not-enough-measurements", str(error)) from error
        return devices.add_revision(session, profile, owner_id)


def create_search(
    service: Service,
    request: Json,
    schedule_id: str | None = None,
    member: Member | None = None,
    owner_id: str = owners.DEFAULT,
) -> Search:
    """Check a request against an owner's model, data, device and budget, then queue the search.

    A later member of a fleet is recorded only: it is queued once the first one has ended.

    Raises Problem: not-found, model-not-ready, dataset-not-ready, invalid-dataset, invalid-search-space,
    search-space-too-large, invalid-limits, invalid-budget, budget-unreachable, device-not-measurable,
    metric-not-measurable, opset-too-low, quota-exceeded.
    """
    with service.database.writing() as session:
        check_quota("live_searches", query.live_count(session, owner_id), service.settings.max_live_searches)
        model = searchable(session, request["model_id"], owner_id)
        graph = ModelGraph.from_json(model.graph or {})
        check_datasets(session, request["dataset"] or {}, graph, owner_id)
        request = settled(session, request, graph)
        device = _device(session, request["device_id"], owner_id)
        profile = DeviceProfile.from_json(device.profile)
        check_measurable(session, request, profile, owner_id)
        limits = _checked_limits(service.settings, request, graph, profile)
        row = Search(
            id=ids.new_id("search"),
            name=request["name"],
            model_id=model.id,
            dataset=request["dataset"] or {},
            device_id=device.id,
            device=device.profile,
            spec=request,
            limits=limits,
            schedule_id=schedule_id,
            fleet_id=None if member is None else member.fleet_id,
            place=None if member is None else member.place,
            priority=request.get("priority") or turns.NORMAL,
            owner_id=owner_id,
        )
        row.state, row.desired, row.created_at = SearchState.queued, "run", now()
        row.progress_done = row.progress_total = row.event_seq = row.slice = 0
        session.add(row)
        session.flush()
        events.append(session, row.id, "state", {"state": row.state})
        for slot in range(0 if row.place else runners_of(request)):
            queue.enqueue_slice(service.client, session, row.id, slot)
        return row


def runners_of(request: Json) -> int:
    """Return how many runners a request asks for."""
    return int((request.get("search") or {}).get("runners") or 1)


def preflight(service: Service, request: Json, owner_id: str) -> Json:
    """Return the absolute limits, the smallest reachable values and the space's size, queueing nothing."""
    with service.database.reading() as session:
        model = searchable(session, request["model_id"], owner_id)
        graph = ModelGraph.from_json(model.graph or {})
        check_datasets(session, request["dataset"] or {}, graph, owner_id)
        request = settled(session, request, graph)
        device = _device(session, request["device_id"], owner_id)
        profile = DeviceProfile.from_json(device.profile)
        check_measurable(session, request, profile, owner_id)
        accuracy = timings.accuracy(session, device.profile, owner_id)
    space, budget, bound = _bounds(service.settings, request, graph, profile)
    return {
        "metric": request["metric"],
        "limits": dict(budget.limits),
        "reachable": dict(bound.smallest),
        "binding": list(bound.binding),
        "nearest": None if bound.nearest is None else dict(bound.nearest),
        "feasible": bound.feasible,
        "space_log10": space.size_log10,
        "latency_accuracy": accuracy.to_json(),
        **cautions(accuracy.verdict == "stale", fallen_back(graph, profile)),
    }


def cancel_search(service: Service, search_id: str) -> tuple[Search, bool]:
    """Ask a search to end; return it and whether it had been cancelled before. Idempotent."""
    with service.database.writing() as session:
        row = session.get(Search, search_id, with_for_update=True)
        if row is None:
            raise Problem("not-found", f"no search {search_id!r}")
        if row.state in (SearchState.cancelled, SearchState.cancelling):
            return row, True
        if SearchState(row.state).is_finished:
            raise Problem("already-finished", f"the search is {row.state}")
        row.desired = "cancel"
        if row.state in (SearchState.queued, SearchState.paused):
            row.state, row.finished_at = SearchState.cancelled, now()
        else:
            row.state = SearchState.cancelling
        events.append(session, row.id, "state", {"state": row.state})
        last = row.slice
        afterwards(session, lambda: queue.drop_slices(service.client, search_id, last))
        return row, False


def export_candidate(service: Service, candidate_id: str, opset: int | None = None) -> Candidate:
    """Enqueue the export of a candidate (feasible or not), at its search's opset unless another is named.

    One that is exported already stays as it is. Raises Problem: not-found, opset-too-low, export-running where another
    opset is asked for meanwhile.
    """
    with service.database.writing() as session:
        row = session.get(Candidate, candidate_id, with_for_update=True)
        if row is None:
            raise Problem("not-found", f"no candidate {candidate_id!r}")
        if opset is not None:
            _check_opset(opset, Assignment.from_json(row.assignment), "/opset")
        if row.export_state in ("queued", "running"):
            if opset is not None:
                raise Problem("export-running", "wait for its end, then ask for another opset")
            return row
        if row.export_state == "done" and opset in (None, (row.report or {}).get("opset", DEFAULT)):
            return row
        row.export_state = "queued"
        name = f"{row.id}-export-{now():%Y%m%d%H%M%S%f}"
        asked = () if opset is None else (str(opset),)
        queue.enqueue(service.client, session, queue.EXPORT_CANDIDATE, name, row.id, *asked)
        return row


def _check_opset(opset: int, chosen: Assignment | SearchSpace, pointer: str) -> None:
    """Raise Problem opset-too-low where files of this opset could not hold what is chosen, or may be."""
    try:
        check_opset(opset, widths_of(chosen))
    except OpsetTooLow as error:
        raise Problem("opset-too-low", str(error), [field_error(pointer, str(error))]) from error


def create_schedule(service: Service, owner_id: str, request: Json) -> Schedule:
    """Store an owner's schedule and hand its cron expression to the durable engine.

    The template is checked now and per tick.
    """
    bound = preflight(service, request["search"], owner_id)
    if not bound["feasible"] and not (request["search"].get("search") or {}).get("allow_best_effort"):
        raise _unreachable(bound["limits"], bound["reachable"], bound["binding"], bound["nearest"])
    try:
        queue.check_cron(request["cron"], request["timezone"])
    except ValueError as error:
        raise Problem("invalid-schedule", str(error), [field_error("/cron", str(error))]) from error
    with service.database.writing() as session:
        row = Schedule(id=ids.new_id("schedule"), name=request["name"], cron=request["cron"], owner_id=owner_id)
        row.timezone, row.template, row.enabled, row.created_at = request["timezone"], request["search"], True, now()
        session.add(row)
        # The durable engine writes in a transaction of its own; `ensure_schedules` makes good what a kill leaves out.
        afterwards(session, lambda: queue.put_schedule(service.client, row.id, row.cron, row.timezone))
        return row


def ensure_schedules(service: Service) -> None:
    """Make the durable engine's cron schedules those of the table: a kill may have come between the two."""
    with service.database.reading() as session:
        wanted = {row.id: row for row in query.schedules(session)}
    known = queue.schedules(service.client)
    for key in known - set(wanted):
        queue.remove_schedule(service.client, key)
    for key in set(wanted) - known:
        queue.put_schedule(service.client, key, wanted[key].cron, wanted[key].timezone)


def fire_schedule(service: Service, schedule_id: str) -> str | None:
    """Create the search of a schedule unless its last one still runs; return the search's id.

    An hour that comes twice, as clocks are set back, fires once.
    """
    with service.database.reading() as session:
        row = session.get(Schedule, schedule_id)
        if row is None or not row.enabled:
            return None
        if row.last_fired_at is not None and is_same_hour_again(row.last_fired_at, now(), row.timezone):
            return None
        # Not `last_search_id`: a kill between the search and the note of it must not fire a second one.
        running = query.live_searches(session, Search.schedule_id, schedule_id)
    if running:
        return None
    problem, search = None, None
    try:
        search = create_search(
            service,
            {**row.template, "name": f"{row.template['name']} {now():%Y-%m-%d %H:%M}"},
            row.id,
            owner_id=row.owner_id,
        )
    except Problem as refusal:
        problem = refusal.to_json()
    with service.database.writing() as session:
        row = session.get_one(Schedule, schedule_id)
        row.last_fired_at, row.problem = now(), problem
        row.last_search_id = row.last_search_id if search is None else search.id
    return None if search is None else search.id


def space_spec(request: Mapping[str, Any]) -> SpaceSpec:
    """Return the space a request asks for."""
    data = request.get("space") or {}
    bits = {key: tuple(data[key]) if data.get(key) else None for key in ("weight_bits", "activation_bits")}
    return SpaceSpec(
        min_keep=data.get("min_keep") or 0.125,
        prune=data.get("prune", True),
        freeze=tuple(data.get("freeze") or ()),
        fixed_bits={name: (pair[0], pair[1]) for name, pair in (data.get("fixed_bits") or {}).items()},
        min_keeps=dict(data.get("min_keeps") or {}),
        max_keeps=dict(data.get("max_keeps") or {}),
        bits={name: _bit_rule(rule) for name, rule in (data.get("bits") or {}).items()},
        first_last=data.get("first_last"),
        **bits,
    )


def _bit_rule(rule: Mapping[str, Any]) -> BitRule:
    weight, activation = (None if rule.get(key) is None else tuple(rule[key]) for key in ("weight", "activation"))
    return BitRule(weight, activation)


def _checked_limits(settings: Settings, request: Json, graph: ModelGraph, profile: DeviceProfile) -> dict[str, float]:
    trials = (request.get("search") or {}).get("trials") or 60
    if trials > settings.max_trials:
        detail = f"{trials} trials; at most {settings.max_trials}"
        raise Problem("invalid-limits", detail, [field_error("/search/trials", detail)])
    _, budget, bound = _bounds(settings, request, graph, profile)
    if not bound.feasible and not (request.get("search") or {}).get("allow_best_effort"):
        raise _unreachable(budget.limits, bound.smallest, bound.binding, bound.nearest)
    return dict(budget.limits)


def _device(session: Session, key: str, owner_id: str) -> Device:
    row = query.device(session, key, owner_id)
    if row is None:
        raise Problem("not-found", f"no device {key!r}")
    return row


def _bounds(
    settings: Settings, request: Json, graph: ModelGraph, profile: DeviceProfile
) -> tuple[SearchSpace, Budget, Reach]:
    """Return the space a request leaves, its absolute budget, and what of it can be reached."""
    space = _space(settings, request, graph, profile)
    _check_opset((request.get("export") or {}).get("opset", DEFAULT), space, "/export/opset")
    budget = resolve(_limits(request), graph, profile)
    # what the model says of a measured limit is no ground to refuse it
    free = () if demand_of(request) is None else ("latency_ms",)
    bound = reach(graph, space, profile, budget, free)
    return space, budget, bound


def _unreachable(
    limits: Mapping[str, float], smallest: Mapping[str, float], binding: Any, near: Mapping[str, float] | None
) -> Problem:
    alone = [metric for metric in binding if smallest[metric] > limits[metric]]
    said = "; ".join(f"{metric} can't go below {smallest[metric]:g} (limit: {limits[metric]:g})" for metric in alone)
    if not alone:
        said = f"{', '.join(binding)} can't be kept together, though each could be alone"
    errors = [field_error("/limits", f"{metric} >= {smallest[metric]:g}", metric) for metric in binding]
    if near:
        said += f"; the nearest that can: {', '.join(f'{metric} <= {value:g}' for metric, value in near.items())}"
    extra = {"reachable": dict(smallest), "binding": list(binding), "nearest": None if near is None else dict(near)}
    return Problem("budget-unreachable", said, errors, extra)


def _space(settings: Settings, request: Json, graph: ModelGraph, profile: DeviceProfile) -> SearchSpace:
    if len(graph.layers) > settings.max_layers:
        raise Problem("search-space-too-large", f"{len(graph.layers)} layers; at most {settings.max_layers}")
    spec = space_spec(request)
    check_names(spec, graph)
    try:
        return build_space(graph, profile, spec)
    except ValueError as error:
        pointer = f"/space{_at_fault(graph, profile, spec)}"
        raise Problem("invalid-search-space", str(error), [field_error(pointer, str(error))]) from error


def _at_fault(graph: ModelGraph, profile: DeviceProfile, spec: SpaceSpec) -> str:
    """Return "/field" for the rule without which a space would be left, or nothing where there is no such one."""
    free = SpaceSpec()
    for item in fields(SpaceSpec):
        if getattr(spec, item.name) != getattr(free, item.name):
            try:
                build_space(graph, profile, replace(spec, **{item.name: getattr(free, item.name)}))
            except ValueError:
                continue
            return f"/{item.name}"
    return ""


def _limits(request: Json) -> tuple[Limit, ...]:
    if not request.get("limits"):
        detail = "at least one limit is needed"
        raise Problem("invalid-budget", detail, [field_error("/limits", detail)])
    return tuple(
        Limit(item["metric"], item.get("max"), item.get("relative"), item.get("relative_to") or "w8a8")
        for item in request["limits"]
    )

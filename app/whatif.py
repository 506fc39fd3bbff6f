"""What if the limits were others: answered from what a search has measured and predicted; nothing is solved."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from app.actions import Service, space_spec
from app.domain.budget import Budget, Limit, resolved
from app.domain.cost import Costs, reference_costs
from app.domain.device import DeviceProfile
from app.domain.floor import least
from app.domain.graph import ModelGraph
from app.domain.space import build_space, widest
from app.problems import Problem, field_error
from app.store import known
from app.store.known import LOSS, MeasuredRow, PredictedRow
from app.store.tables import Model, Search

Json = dict[str, Any]


def whatif(service: Service, search_id: str, limits: Sequence[Json]) -> Json:
    """Return the best a search knows inside other limits: measured, and predicted; and what can be reached at all.

    Raises Problem not-found, invalid-budget.
    """
    with service.database.reading() as session:
        search = session.get(Search, search_id)
        if search is None:
            raise Problem("not-found", f"no search {search_id!r}")
        costs = search.reachable or facts(session.get_one(Model, search.model_id), search)
        budget = _budget(limits, costs, DeviceProfile.from_json(search.device))
        found = known.best_measured(session, search_id, budget.limits)
        guess = known.best_predicted(session, search_id, budget.limits)
        nearest = None if found is not None else known.nearest_measured(session, search_id, budget.limits)
        measured, predicted = known.counts(session, search_id)
        answer = _answer(budget, costs["least"], (found, guess, nearest))
        if found is not None:
            answer["measured"]["assignment"] = known.trial_assignment(session, search_id, found.idx)
        if guess is not None:
            answer["predicted"]["assignment"] = known.predicted_assignment(session, search_id, guess.number)
    return {**answer, "metric": search.spec.get("metric"), "known": {"measured": measured, "predicted": predicted}}


def facts(model: Model, search: Search) -> dict[str, Json]:
    """Count what bounds and scales a search's limits: the least of every cost, and the two reference networks'."""
    graph, device = ModelGraph.from_json(model.graph or {}), DeviceProfile.from_json(search.device)
    references = reference_costs(graph, device, {"w8a8": widest(graph, 8), "float": widest(graph, 32)})
    floor = least(graph, build_space(graph, device, space_spec(search.spec)), device)
    return {name: costs.to_json() for name, costs in {**references, "least": floor}.items()}


def _budget(limits: Sequence[Json], costs: Mapping[str, Json], device: DeviceProfile) -> Budget:
    if not limits:
        detail = "at least one limit is needed"
        raise Problem("invalid-budget", detail, [field_error("/limits", detail)])
    asked = tuple(
        Limit(item["metric"], item.get("max"), item.get("relative"), item.get("relative_to") or "w8a8")
        for item in limits
    )
    return resolved(asked, {name: Costs.from_json(costs[name]) for name in ("w8a8", "float")}, device)


def _answer(
    budget: Budget,
    least: Mapping[str, float],
    best: tuple[MeasuredRow | None, PredictedRow | None, MeasuredRow | None],
) -> Json:
    found, guess, nearest = best
    smallest = {metric: least[metric] for metric in budget.limits}
    predicted: Json | None = None
    if guess is not None:
        figures = {LOSS: guess.loss, "accuracy": guess.accuracy, **(guess.metrics or {})}
        predicted = {"evidence": "predicted", **figures, "costs": guess.costs}
    return {
        "limits": dict(budget.limits),
        "reachable": smallest,
        "binding": [metric for metric, limit in budget.limits.items() if smallest[metric] > limit],
        "measured": None if found is None else _measured(found),
        "predicted": predicted,
        "nearest": None
        if nearest is None
        else {**_measured(nearest), "violation": budget.violation(Costs.from_json(nearest.costs))},
    }


def _measured(row: MeasuredRow) -> Json:
    return {
        "evidence": "measured",
        "trial_idx": row.idx,
        "kind": row.kind,
        "fidelity": row.params.get("fidelity", "full"),
        "metrics": row.metrics,
        "costs": row.costs,
    }

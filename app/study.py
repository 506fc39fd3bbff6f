"""A search as an Optuna journal file: what optuna-dashboard opens. Written by its format, without Optuna.

The objectives are the loss and the search's first limited cost, both minimised; the parameters are the choices that an
assignment makes (`keep:GROUP`, `weight:LAYER`, `activation:ID`); a positive constraint is the violation of the budget.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from typing import Any

from app.store.tables import Search, Trial

Json = dict[str, Any]
CREATE_STUDY, SET_STUDY_USER_ATTR, CREATE_TRIAL = 0, 2, 4
MINIMIZE = 1
COMPLETE, FAILED = 1, 3
KINDS = {"keep": "keep", "weight": "weight_bits", "activation": "activation_bits"}
LOSS = "kl"


def journal(search: Search, trials: Sequence[Trial]) -> Iterator[str]:
    """Yield the journal's lines for a search and its finished trials."""
    cost = next(iter(search.limits), "bops")
    choices = [_choices(row.assignment or {}) for row in trials]
    ranges = _ranges(choices)
    yield _line(CREATE_STUDY, study_name=search.id, directions=[MINIMIZE, MINIMIZE])
    told = {"name": search.name, "device": search.device_id, "limits": search.limits, "objectives": [LOSS, cost]}
    for key, value in told.items():
        yield _line(SET_STUDY_USER_ATTR, study_id=0, user_attr={key: value})
    for row, chosen in zip(trials, choices, strict=True):
        if row.finished_at is not None:
            yield _line(CREATE_TRIAL, study_id=0, **_trial(row, cost, chosen, ranges))


def _trial(row: Trial, cost: str, chosen: Mapping[str, int], ranges: Mapping[str, tuple[int, int]]) -> Json:
    metrics, costs = row.metrics or {}, row.costs or {}
    is_done = row.state == "done" and LOSS in metrics and cost in costs
    return {
        "state": COMPLETE if is_done else FAILED,
        "value": None,
        "values": [metrics[LOSS], costs[cost]] if is_done else None,
        "datetime_start": _moment(row.created_at),
        "datetime_complete": _moment(row.finished_at or row.created_at),
        "distributions": {name: _distribution(*ranges[name]) for name in chosen},
        "params": {name: float(value) for name, value in chosen.items()},
        "user_attrs": {
            "idx": row.idx,
            "kind": row.kind,
            "feasible": row.feasible,
            "failure": row.failure,
            **{f"metric:{name}": value for name, value in metrics.items()},
            **{f"cost:{name}": value for name, value in costs.items()},
        },
        "system_attrs": {} if row.violation is None else {"constraints": [row.violation]},
        "intermediate_values": {},
    }


def _choices(assignment: Mapping[str, Mapping[str, int]]) -> dict[str, int]:
    return {f"{kind}:{name}": value for kind, part in KINDS.items() for name, value in assignment.get(part, {}).items()}


def _ranges(choices: Sequence[Mapping[str, int]]) -> dict[str, tuple[int, int]]:
    """Return the smallest and largest value of each choice over all trials."""
    found: dict[str, tuple[int, int]] = {}
    for chosen in choices:
        for name, value in chosen.items():
            low, high = found.get(name, (value, value))
            found[name] = min(low, value), max(high, value)
    return found


def _distribution(low: int, high: int) -> str:
    attributes = {"log": False, "step": 1, "low": low, "high": high}
    return json.dumps({"name": "IntDistribution", "attributes": attributes})


def _moment(value: datetime) -> str:
    return value.isoformat(timespec="microseconds")


def _line(code: int, **fields: Any) -> str:
    return json.dumps({"op_code": code, "worker_id": "tightfit", **fields}) + "\n"

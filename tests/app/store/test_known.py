"""What a search knows: the database finds the best inside limits, on both databases alike."""

from __future__ import annotations

from typing import Any

from app.domain import ids
from app.store import known
from app.store.engine import Database
from app.store.tables import Trial


def trial(search: str, idx: int, kl: float | None, costs: dict[str, float], **fields: Any) -> Trial:
    row = Trial(id=ids.new_id("trial"), search_id=search, idx=idx, kind="seed", state="done", assignment={"a": idx})
    row.costs, row.metrics = costs, None if kl is None else {"kl": kl, **fields}
    return row


def fill(database: Database, search: str) -> None:
    rows = [
        trial(search, 0, 0.0, {"bops": 900.0, "macs": 9.0}),
        trial(search, 1, 0.30, {"bops": 100.0, "macs": 5.0}, accuracy=0.7),
        trial(search, 2, 0.30, {"bops": 101.5, "macs": 5.0}, accuracy=0.8),
        trial(search, 3, 0.10, {"bops": 400.0, "macs": 3.0}),
        trial(search, 4, 1e-5, {"bops": 2e3, "macs": 2.0}),
        trial(search, 5, None, {"bops": 1.0, "macs": 1.0}),
    ]
    rows[0].kind, rows[5].state = "baseline", "failed"
    with database.writing() as session:
        session.add_all(rows)
        session.flush()
        known.predict(session, search, [
            {"assignment": {"p": n}, "costs": {"bops": bops, "macs": 1.0}, "loss": loss, "accuracy": None}
            for n, (bops, loss) in enumerate([(90.0, 0.4), (95.0, 0.35), (300.0, 0.2)])
        ])  # fmt: skip


def test_best_measured_when_several_keep_the_limits_then_least_loss_then_highest_accuracy(
    database: Database, search_id: str
) -> None:
    fill(database, search_id)
    with database.reading() as session:
        found = [
            known.best_measured(session, search_id, limits)
            for limits in ({"bops": 150.0}, {"bops": 500.0}, {"bops": 500.0, "macs": 2.5}, {"macs": 2.0})
        ]
        assert [None if row is None else row.idx for row in found] == [2, 3, None, 4]
        assert found[0] is not None and found[0].costs == {"bops": 101.5, "macs": 5.0}
        assert known.trial_assignment(session, search_id, 2) == {"a": 2}
        assert known.counts(session, search_id) == (4, 3)


def test_nearest_measured_when_none_keeps_the_limits_then_the_least_excess(database: Database, search_id: str) -> None:
    fill(database, search_id)
    with database.reading() as session:
        close, far = (known.nearest_measured(session, search_id, {"bops": 80.0, "macs": m}) for m in (5.0, 1.0))
        assert (close and close.idx, far and far.idx) == (1, 1)
        other = known.nearest_measured(session, search_id, {"macs": 1.0, "bops": 1900.0})
        assert other is not None and other.idx == 4


def test_best_predicted_when_predicted_anew_then_the_former_are_gone(database: Database, search_id: str) -> None:
    fill(database, search_id)
    with database.reading() as session:
        found = known.best_predicted(session, search_id, {"bops": 100.0})
        assert found is not None and (found.number, found.loss) == (1, 0.35)
        assert known.predicted_assignment(session, search_id, 1) == {"p": 1}
    with database.writing() as session:
        known.predict(session, search_id, [])
    with database.reading() as session:
        assert known.best_predicted(session, search_id, {"bops": 1e9}) is None
        assert known.counts(session, search_id)[1] == 0


def test_points_when_asked_then_every_measured_trial_with_the_baseline(database: Database, search_id: str) -> None:
    fill(database, search_id)
    with database.reading() as session:
        found = known.points(session, search_id)
    assert [item.idx for item in found] == [0, 1, 2, 3, 4]
    assert (found[0].kind, found[2].metrics["accuracy"], found[3].costs["macs"]) == ("baseline", 0.8, 3.0)

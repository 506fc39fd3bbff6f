"""A search as an Optuna journal: Optuna itself reads it back."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

import optuna
import pytest
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend

from app.store.tables import Search, Trial, now
from app.study import journal


def trial(idx: int, keep: int, kl: float | None, violation: float = 0.0) -> Trial:
    row = Trial(id=f"trl_{idx}", search_id="srh_1", idx=idx, kind="sampled", state="failed" if kl is None else "done")
    row.assignment = {"keep": {"g": keep}, "weight_bits": {"l": 8}, "activation_bits": {"x": 4}}
    row.metrics, row.failure = (None, {"kind": "dead"}) if kl is None else ({"kl": kl, "accuracy": 1 - kl}, None)
    row.costs, row.violation, row.feasible = {"bops": 100.0 * keep}, violation, violation == 0
    row.created_at, row.finished_at = now(), now() + timedelta(seconds=1)
    return row


def test_journal_when_read_by_optuna_then_the_trials_with_values_choices_and_constraints(tmp_path: Path) -> None:
    search = Search(id="srh_1", name="tight", device_id="npu", limits={"bops": 500.0}, spec={}, dataset={}, device={})
    rows = [trial(0, 8, 0.1), trial(1, 2, 0.4), trial(2, 6, None, 0.2)]
    running = trial(3, 4, 0.2)
    running.finished_at = None
    file = tmp_path / "study.journal"
    file.write_text("".join(journal(search, [*rows, running])))
    study = optuna.load_study(study_name="srh_1", storage=JournalStorage(JournalFileBackend(str(file))))
    assert [item.name for item in study.directions] == ["MINIMIZE", "MINIMIZE"]
    assert study.user_attrs["objectives"] == ["kl", "bops"]
    assert [item.state.name for item in study.trials] == ["COMPLETE", "COMPLETE", "FAIL"]
    assert study.trials[1].values == [0.4, 200.0]
    assert study.trials[1].params == {"keep:g": 2, "weight:l": 8, "activation:x": 4}
    assert study.trials[0].distributions["keep:g"] == optuna.distributions.IntDistribution(2, 8)
    assert study.trials[2].system_attrs["constraints"] == [0.2]
    assert study.trials[0].user_attrs["metric:accuracy"] == pytest.approx(0.9)
    assert {item.number for item in study.best_trials} == {0, 1}

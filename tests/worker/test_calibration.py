"""A whole calibration on real rows, in a real sandbox: from networks to the next revision of the profile."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from app.domain import ids
from app.domain.device import DeviceProfile
from app.main import builtin_profiles
from app.store import query
from app.store.tables import Calibration, Device
from tests.reliability.rig import Rig, build
from worker.calibration import Calibrator, calibrated
from worker.job import Site

EFFORT = {"micro": 12, "micro_versions": 1, "versions": 6}
HOST = next(profile for profile in builtin_profiles() if profile["name"] == "onnxruntime-cpu")


def ask(rig: Rig, **fields: Any) -> str:
    with rig.database.writing() as session:
        if query.device(session, "onnxruntime-cpu") is None:
            base = Device(id="onnxruntime-cpu", name="onnxruntime-cpu", revision=1, profile=HOST, builtin=True)
            session.add(base)
        row = Calibration(
            id=ids.new_id("calibration"),
            device="onnxruntime-cpu",
            base_id="onnxruntime-cpu",
            model_ids=[rig.model_id],
            **fields,
        )
        session.add(row)
    return row.id


@pytest.fixture
def rig(tmp_path: Path, files: Path, picture: dict[str, Any]) -> Rig:
    return build(f"sqlite:///{tmp_path / 'app.db'}", tmp_path, files, picture)


def outcome(rig: Rig, key: str) -> Calibration:
    Calibrator(Site(rig.database, rig.blobs), key, EFFORT).run()
    with rig.database.reading() as session:
        return session.get_one(Calibration, key)


def test_calibration_when_run_on_this_host_then_the_next_revision_predicts_with_a_table(rig: Rig) -> None:
    row = outcome(rig, ask(rig))
    assert (row.state, row.problem, row.progress_done, row.progress_total) == ("done", None, 18, 18)
    assert row.report is not None and row.report["all"]["networks"] == 6
    with rig.database.reading() as session:
        newest, first = query.device(session, "onnxruntime-cpu"), session.get_one(Device, "onnxruntime-cpu")
    assert newest is not None
    assert (newest.id, newest.revision, newest.builtin) == (row.device_id, 2, False)
    assert first.profile == HOST, "the revision it was made from stays as it is"
    profile = DeviceProfile.from_json(newest.profile)
    assert (profile.evidence, profile.table is not None) == ("interpolated", True)
    assert profile.error_p90 == row.table["errors"]["all"] > 0
    assert row.table["conditions"]["onnxruntime"]


def test_calibration_when_cancelled_before_it_began_then_nothing_is_measured(rig: Rig) -> None:
    row = outcome(rig, ask(rig, desired="cancel"))
    assert (row.state, row.device_id, row.progress_total) == ("cancelled", None, 0)


def test_calibrated_when_a_profile_was_calibrated_before_then_the_new_source_takes_the_old_ones_place() -> None:
    fitted = {"coefficients": {}, "correction": {}, "errors": {}, "conditions": {}, "saturating": False}
    made = {"table": fitted, "error_p90": 0.1}
    once = calibrated(HOST, made, "cal_1", None)
    twice = calibrated(once, {**made, "error_p90": 0.2}, "cal_2", "pi")
    assert twice["evidence"]["sources"] == [*HOST["evidence"]["sources"], "calibration cal_2 on pi"]
    assert (once["evidence"]["error_p90"], twice["evidence"]["error_p90"]) == (0.1, 0.2)
    assert HOST["latency_table"] is None


@pytest.mark.parametrize("saturating", [True, False])
def test_calibrated_when_the_processor_saturates_or_not_then_the_rules_say_so(saturating: bool) -> None:
    fitted = {"coefficients": {}, "correction": {}, "errors": {}, "conditions": {}, "saturating": saturating}
    found = calibrated(HOST, {"table": fitted, "error_p90": 0.1}, "cal_1", None)
    assert found["rules"]["saturating_pairs"] is saturating
    assert found["latency_table"]["saturating"] is saturating

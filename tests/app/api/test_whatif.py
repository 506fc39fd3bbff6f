"""What if the limits were others: from rows alone, within a tenth of a second."""

from __future__ import annotations

import time
from typing import Any

import pytest
from fastapi.testclient import TestClient

from app.actions import Service
from app.domain import ids
from app.store import known
from app.store.tables import Model, Prediction, Search, Trial
from app.whatif import facts

Json = dict[str, Any]


@pytest.fixture(scope="module")
def search(client: TestClient, service: Service, ready: dict[str, str]) -> str:
    """A search with three measured trials and two predictions, at a quarter, an eighth and a sixteenth of W8A8."""
    body = {"name": "s", "model_id": ready["model"], "dataset": {"all": ready["dataset"]}, "device_id": "generic-npu",
            "limits": [{"metric": "bops", "relative": 0.25}]}  # fmt: skip
    found: str = client.post("/v1/searches", json=body).json()["id"]
    whole = client.post(f"/v1/searches/{found}/whatif", json={"limits": [{"metric": "bops", "relative": 1}]}).json()
    bops = whole["limits"]["bops"]
    with service.database.writing() as session:
        session.add(trial(found, 0, "baseline", bops * 16, 0.0, 0.9))
        for idx, (share, kl, accuracy) in enumerate([(0.25, 0.1, 0.8), (0.125, 0.3, 0.7), (0.12, 0.2, 0.72)], 1):
            session.add(trial(found, idx, "known" if idx == 3 else "seed", bops * share, kl, accuracy))
        items = [(0.2, 0.15, 0.78), (0.0625, 0.6, 0.6)]
        known.predict(session, found, [
            {"assignment": {"keep": {"g": n}}, "costs": costs(bops * share), "loss": loss, "accuracy": accuracy}
            for n, (share, loss, accuracy) in enumerate(items)
        ])  # fmt: skip
    return found


def costs(bops: float) -> Json:
    return {"macs": 1.0, "bops": bops, "weight_bytes": 1.0, "peak_activation_bytes": 1.0, "latency_ms": 1.0,
            "energy_mj": 1.0}  # fmt: skip


def trial(search: str, idx: int, kind: str, bops: float, kl: float, accuracy: float) -> Trial:
    row = Trial(id=ids.new_id("trial"), search_id=search, idx=idx, kind=kind, state="done")
    row.params, row.assignment, row.costs = {"fidelity": "full"}, {"keep": {"g": idx}}, costs(bops)
    row.metrics = {"kl": kl, "accuracy": accuracy}
    return row


def ask(client: TestClient, search: str, **limit: Any) -> Json:
    answer = client.post(f"/v1/searches/{search}/whatif", json={"limits": [{"metric": "bops", **limit}]})
    assert answer.status_code == 200, answer.text
    body: Json = answer.json()
    return body


def test_whatif_when_trials_lie_inside_then_the_one_with_least_loss_and_the_best_prediction(
    client: TestClient, search: str
) -> None:
    found = ask(client, search, relative=0.125)
    assert (found["measured"]["trial_idx"], found["measured"]["kind"], found["measured"]["evidence"]) == (
        3, "known", "measured",
    )  # fmt: skip
    assert found["measured"]["metrics"] == {"kl": 0.2, "accuracy": 0.72}
    assert found["measured"]["assignment"] == {"keep": {"g": 3}}
    assert (found["predicted"]["kl"], found["predicted"]["accuracy"]) == (0.6, 0.6)
    assert found["predicted"]["assignment"] == {"keep": {"g": 1}}
    assert (found["nearest"], found["binding"]) == (None, [])
    assert found["known"] == {"measured": 3, "predicted": 2}


def test_whatif_when_the_search_has_a_metric_of_its_own_then_a_prediction_tells_it_too(
    client: TestClient, service: Service, search: str
) -> None:
    before = ask(client, search, relative=0.125)
    assert (before["metric"], "miou" in before["predicted"]) == ("accuracy", False)
    with service.database.writing() as session:
        row = session.query(Prediction).filter_by(search_id=search, number=1).one()
        row.metrics = {"miou": 0.4}
    assert ask(client, search, relative=0.125)["predicted"]["miou"] == 0.4


def test_whatif_when_no_trial_lies_inside_then_the_nearest_and_the_smallest_reachable(
    client: TestClient, search: str
) -> None:
    found = ask(client, search, relative=0.0625)
    assert (found["measured"], found["predicted"]["kl"]) == (None, 0.6)
    assert found["nearest"]["trial_idx"] == 3
    assert found["nearest"]["violation"] == pytest.approx(0.12 / 0.0625 - 1)
    impossible = ask(client, search, max=1.0)
    assert impossible["binding"] == ["bops"] and impossible["reachable"]["bops"] > 1.0


def test_whatif_when_the_device_has_little_room_then_that_is_a_limit_too(
    client: TestClient, service: Service, ready: dict[str, str], search: str
) -> None:
    body = {"name": "s", "model_id": ready["model"], "dataset": {"all": ready["dataset"]}, "device_id": "stm32h7",
            "limits": [{"metric": "bops", "relative": 0.25}]}  # fmt: skip
    other = client.post("/v1/searches", json=body).json()["id"]
    assert {"bops", "weight_bytes", "peak_activation_bytes"} <= set(ask(client, other, relative=0.5)["limits"])


@pytest.mark.parametrize(
    "limits",
    [
        [],
        [{"metric": "speed", "max": 1}],
        [{"metric": "latency_ms", "max": 1, "evidence": "measured"}],
        [{"metric": "bops"}],
    ],
)
def test_whatif_when_the_limits_are_wrong_then_refused(client: TestClient, search: str, limits: list[Json]) -> None:
    assert client.post(f"/v1/searches/{search}/whatif", json={"limits": limits}).status_code == 422
    assert (
        client.post("/v1/searches/srh_none/whatif", json={"limits": [{"metric": "bops", "max": 1}]}).status_code == 404
    )


def test_whatif_when_the_facts_are_stored_then_the_same_answer_sooner(
    client: TestClient, service: Service, search: str
) -> None:
    before = ask(client, search, relative=0.125)
    with service.database.writing() as session:
        row = session.get_one(Search, search)
        known.note_reachable(session, search, facts(session.get_one(Model, row.model_id), row))
    assert ask(client, search, relative=0.125) == before
    times = []
    for _ in range(20):
        start = time.perf_counter()
        ask(client, search, relative=0.125)
        times.append(time.perf_counter() - start)
    assert min(times) < 0.1

"""Searches over HTTP: bounds before queueing, one answer per key, states, events."""

from __future__ import annotations

import json
import math
from typing import Any, get_args

import pytest
from fastapi.testclient import TestClient

from app.actions import Service
from app.domain import ids
from app.domain.budget import Budget
from app.domain.device import DeviceProfile
from app.store import events
from app.store import runner as rows
from app.store.tables import Dataset, Search
from tests.worker.search.pictures import resnet as resnet8
from worker.search.sampling import SamplerName

Json = dict[str, Any]


def post(client: TestClient, body: Any, **headers: str) -> Any:
    return client.post("/v1/searches", json=body, headers=headers)


def test_search_when_possible_then_queued_with_absolute_limits(client: TestClient, request_body: Json) -> None:
    answer = post(client, request_body)
    assert answer.status_code == 202
    body = answer.json()
    assert answer.headers["location"] == f"/v1/searches/{body['id']}"
    assert (body["state"], body["outcome"]) == ("queued", None)
    macs = sum(
        layer.positions * layer.kernel_size * layer.weight_shape[0] * layer.weight_shape[1]
        for layer in resnet8().layers
    )
    assert body["budget"]["limits"]["bops"] == pytest.approx(macs * 64 / 8)


def test_search_when_queued_then_its_job_is_in_the_engine_and_its_event_told(
    client: TestClient, service: Service, request_body: Json
) -> None:
    key = post(client, request_body).json()["id"]
    jobs = service.client.list_workflows(queue_name="trials", load_input=False)
    assert f"{key}-r0-s1" in {job.workflow_id for job in jobs}
    with service.database.reading() as session:
        assert [(e.seq, e.kind, e.payload) for e in events.after(session, key, 0)] == [
            (1, "state", {"state": "queued"})
        ]


def test_search_when_runners_are_asked_for_then_each_has_a_job(
    client: TestClient, service: Service, request_body: Json
) -> None:
    key = post(client, {**request_body, "search": {"runners": 3}}).json()["id"]
    jobs = service.client.list_workflows(queue_name="trials", load_input=False)
    found = sorted(job.workflow_id for job in jobs if job.workflow_id.startswith(key))
    assert found == [f"{key}-r0-s1", f"{key}-r1-s2", f"{key}-r2-s3"]


def test_search_when_accuracy_is_the_target_of_data_without_labels_then_refused(
    client: TestClient, service: Service, request_body: Json
) -> None:
    stop = {"patience": 20, "target": {"metric": "accuracy", "value": 0.9}}
    assert post(client, {**request_body, "search": {"stop": stop}}).status_code == 202
    with service.database.writing() as session:
        labelled = session.get_one(Dataset, request_body["dataset"]["all"])
        plain = Dataset(id=ids.new_id("dataset"), name="x", blob_sha=labelled.blob_sha, bytes=9, state="ready", spec={})
        plain.info = {**(labelled.info or {}), "has_labels": False}
        session.add(plain)
    body = {**request_body, "dataset": {"all": plain.id}, "search": {"stop": stop}}
    answer = post(client, body)
    assert (answer.status_code, answer.json()["errors"][0]["pointer"]) == (422, "/search/stop/target/metric")
    body["search"] = {}
    answer = post(client, {**body, "quality": {"max_drop": 0.02}})
    assert (answer.status_code, answer.json()["errors"][0]["pointer"]) == (422, "/quality/metric")
    assert post(client, {**body, "quality": {"metric": "agreement", "min": 0.9}}).status_code == 202
    assert post(client, {**body, "quality": {"metric": "agreement"}}).status_code == 422
    stop["target"] = {"metric": "kl", "value": 0.1}
    body["search"] = {"stop": stop}
    assert post(client, body).status_code == 202


def unlabelled(service: Service, body: Json) -> str:
    """Store a dataset like the request's, but without labels; return its id."""
    with service.database.writing() as session:
        labelled = session.get_one(Dataset, body["dataset"]["all"])
        plain = Dataset(id=ids.new_id("dataset"), name="x", blob_sha=labelled.blob_sha, bytes=9, state="ready", spec={})
        plain.info = {**(labelled.info or {}), "has_labels": False, "classes": None}
        session.add(plain)
    return plain.id


def test_metric_when_not_named_then_accuracy_with_labels_and_kl_without(
    client: TestClient, service: Service, request_body: Json
) -> None:
    plain = {**request_body, "dataset": {"all": unlabelled(service, request_body)}}
    asked = [request_body, plain, {**plain, "metric": "cosine"}]
    assert [client.post("/v1/searches/preflight", json=body).json()["metric"] for body in asked] == [
        "accuracy",
        "kl",
        "cosine",
    ]
    made = [post(client, body).json() for body in asked]
    assert [item["metric"] for item in made] == ["accuracy", "kl", "cosine"]
    assert made[0]["request"]["metric"] == "accuracy"
    front = [client.get(f"/v1/searches/{item['id']}/front").json()["axes"][0] for item in made[1:]]
    assert front == ["kl", "cosine"]


@pytest.mark.parametrize(
    ("change", "pointer"),
    [
        ({"metric": "accuracy"}, "/metric"),
        ({"metric": "miou"}, "/metric"),
        ({"metric": "bleu"}, "/metric"),
        ({"quality": {"metric": "top5", "min": 0.9}}, "/quality/metric"),
        ({"search": {"stop": {"target": {"metric": "accuracy", "value": 0.9}}}}, "/search/stop/target/metric"),
    ],
)
def test_metric_when_data_or_network_do_not_allow_it_then_refused_by_name(
    client: TestClient, service: Service, request_body: Json, change: Json, pointer: str
) -> None:
    body = {**request_body, "dataset": {"all": unlabelled(service, request_body)}, **change}
    for answer in (post(client, body), client.post("/v1/searches/preflight", json=body)):
        assert (answer.status_code, answer.json()["type"]) == (422, "/problems/metric-not-measurable")
        assert answer.json()["errors"][0]["pointer"] == pointer


def test_metric_when_the_network_scores_too_few_classes_then_refused_with_labels_too(
    client: TestClient, request_body: Json
) -> None:
    answer = post(client, {**request_body, "metric": "miou"})
    assert answer.json()["type"] == "/problems/metric-not-measurable"
    assert "a class for every pixel" in answer.json()["detail"]
    assert post(client, {**request_body, "metric": "top5"}).status_code == 202


def test_quality_when_its_metric_is_left_open_then_the_searchs_and_its_bounds_must_suit_it(
    client: TestClient, request_body: Json
) -> None:
    made = post(client, {**request_body, "metric": "kl", "quality": {"max": 0.1}}).json()
    assert made["request"]["quality"] == {"metric": "kl", "max": 0.1}
    answer = post(client, {**request_body, "metric": "kl", "quality": {"max_drop": 0.1}})
    assert (answer.status_code, answer.json()["type"]) == (422, "/problems/invalid-budget")
    assert "lower is better" in answer.json()["detail"]
    assert post(client, {**request_body, "metric": "kl", "quality": {"metric": "accuracy", "min": 0.5}}).is_success


def test_study_when_asked_for_then_a_journal_of_the_search(client: TestClient, request_body: Json) -> None:
    key = post(client, request_body).json()["id"]
    answer = client.get(f"/v1/searches/{key}/study")
    lines = [json.loads(line) for line in answer.text.splitlines()]
    assert answer.headers["content-disposition"] == f'attachment; filename="{key}.journal"'
    assert lines[0] == {"op_code": 0, "worker_id": "tightfit", "study_name": key, "directions": [1, 1]}
    assert client.get("/v1/searches/srh_none/study").status_code == 404


def test_search_when_latency_is_measured_then_one_runner_only(client: TestClient, request_body: Json) -> None:
    limits = [{"metric": "latency_ms", "max": 1, "evidence": "measured"}]
    answer = post(client, {**request_body, "limits": limits, "search": {"runners": 2}})
    assert answer.status_code == 422
    assert "a search that measures latency has one runner" in answer.text


def test_sampler_when_asked_for_then_those_that_the_worker_offers_and_no_others(
    client: TestClient, request_body: Json
) -> None:
    for name in get_args(SamplerName):
        made = post(client, {**request_body, "search": {"sampler": name}}).json()
        assert made["request"]["search"]["sampler"] == name
    refused = post(client, {**request_body, "search": {"sampler": "cma"}})
    assert (refused.status_code, refused.json()["errors"][0]["pointer"]) == (422, "/search/sampler")


def test_goal_when_a_front_is_asked_for_then_kept_with_its_axes_and_a_plain_request_reads_as_before(
    client: TestClient, request_body: Json
) -> None:
    plain = post(client, request_body).json()["request"]["search"]
    assert not {"goal", "axes"} & plain.keys() and "growth" not in plain["stop"]
    asked = {"goal": "front", "axes": ["kl", "bops", "weight_bytes"], "stop": {"patience": 9, "growth": 0.02}}
    kept = post(client, {**request_body, "search": asked}).json()["request"]["search"]
    assert {key: kept[key] for key in ("goal", "axes")} == {"goal": "front", "axes": ["kl", "bops", "weight_bytes"]}
    assert (kept["stop"]["patience"], kept["stop"]["growth"]) == (9, 0.02)


@pytest.mark.parametrize(
    "search",
    [
        {"axes": ["kl", "bops"]},
        {"goal": "front", "axes": ["bops", "macs"]},
        {"goal": "front", "axes": ["kl", "bops", "bops"]},
        {"goal": "front", "axes": ["kl"]},
        {"goal": "front", "axes": ["kl", "accuracy"]},
        {"goal": "fronts"},
        {"stop": {"growth": 1.0}},
    ],
)
def test_goal_when_its_axes_are_none_then_refused(client: TestClient, request_body: Json, search: Json) -> None:
    refused = post(client, {**request_body, "search": search})
    assert (refused.status_code, refused.json()["errors"][0]["pointer"][:7]) == (422, "/search")


def test_goal_when_latency_is_measured_then_no_front(client: TestClient, request_body: Json) -> None:
    limits = [{"metric": "latency_ms", "max": 5.0, "evidence": "measured"}]
    refused = post(client, {**request_body, "limits": limits, "search": {"goal": "front"}})
    assert refused.status_code == 422
    assert "front" in refused.text


@pytest.mark.fault(61)
def test_budget_when_below_the_cheapest_assignment_then_refused_with_reachable_values(
    client: TestClient, request_body: Json
) -> None:
    limits = [{"metric": "bops", "relative": 1e-6}, {"metric": "weight_bytes", "max": 1e9}]
    answer = post(client, {**request_body, "limits": limits})
    assert answer.status_code == 422
    body = answer.json()
    assert body["type"] == "/problems/budget-unreachable"
    assert body["binding"] == ["bops"]
    again = [{"metric": "bops", "max": body["reachable"]["bops"]}]
    assert post(client, {**request_body, "limits": again}).status_code == 202
    near = [{"metric": metric, "max": value} for metric, value in body["nearest"].items()]
    assert post(client, {**request_body, "limits": near}).status_code == 202
    below = [{"metric": "bops", "max": body["reachable"]["bops"] - 1}]
    assert post(client, {**request_body, "limits": below}).json()["type"] == "/problems/budget-unreachable"


def test_budget_when_impossible_but_best_effort_is_allowed_then_queued_and_preflight_says_so(
    client: TestClient, request_body: Json
) -> None:
    asked = {**request_body, "limits": [{"metric": "bops", "relative": 1e-6}], "search": {"allow_best_effort": True}}
    counted, made = client.post("/v1/searches/preflight", json=asked).json(), post(client, asked)
    assert (counted["feasible"], counted["binding"]) == (False, ["bops"])
    assert counted["nearest"]["bops"] == counted["reachable"]["bops"] > counted["limits"]["bops"]
    assert made.status_code == 202


@pytest.mark.fault(5, 62, 64, 67)
@pytest.mark.parametrize(
    ("change", "slug"),
    [
        ({"limits": []}, "invalid-budget"),
        ({"limits": [{"metric": "bops", "max": -1}]}, "invalid-budget"),
        ({"limits": [{"metric": "bops"}]}, "invalid-budget"),
        ({"limits": [{"metric": "volume", "max": 1}]}, "invalid-budget"),
        ({"space": {"min_keep": 2}}, "invalid-search-space"),
        ({"space": {"weight_bits": [7]}}, "invalid-search-space"),
        ({"space": {"freeze": ["no-such*"]}}, "invalid-search-space"),
        ({"space": {"min_keeps": {"no-such*": 0.5}}}, "invalid-search-space"),
        ({"space": {"min_keeps": {"*": 1.5}}}, "invalid-search-space"),
        ({"search": {"trials": 0}}, "invalid-limits"),
        ({"search": {"trials": 99_999}}, "invalid-limits"),
        ({"model_id": "mdl_none"}, "not-found"),
        ({"device_id": "toaster"}, "not-found"),
        ({"dataset": {"calibration": "dst_none"}}, "calibration-required"),
        ({"colour": "red"}, "unknown-field"),
        ({"methods": [{"name": "straight-through", "gates": 2}]}, "invalid-method-params"),
        ({"methods": [{"name": "bias-correction", "mode": "analytic", "training": {}}]}, "invalid-method-params"),
        ({"methods": [{"name": "magic"}]}, "invalid-method-params"),
        ({"methods": [{"name": "relaxed-rounding", "rate": 7}]}, "invalid-method-params"),
    ],
)
def test_search_when_request_is_bad_then_refused_by_name(
    client: TestClient, request_body: Json, change: Json, slug: str
) -> None:
    answer = post(client, {**request_body, **change})
    assert answer.json()["type"] == f"/problems/{slug}"
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.status_code == answer.json()["status"]


@pytest.mark.parametrize(
    ("space", "pointer", "told"),
    [
        ({"max_keeps": {"no-such*": 0.5}}, "/space/max_keeps", "fits no layer or channel group"),
        ({"max_keeps": {"g_head": 0.5}}, "/space/max_keeps", "can't be removed"),
        ({"max_keeps": {"*": 0}}, "/space/max_keeps/*", "greater than 0"),
        ({"max_keeps": {"*": 0.1}}, "/space/max_keeps", "no width is legal"),
        ({"max_keeps": {"*": 0.5}, "min_keep": 0.75}, "/space/min_keep", "no width is legal"),
        ({"bits": {"no-such*": {"weight": [8]}}}, "/space/bits", "fits no layer of the network"),
        ({"bits": {"*": {}}}, "/space/bits/*", "give weight, activation or both"),
        ({"bits": {"*": {"weight": []}}}, "/space/bits/*/weight", "at least 1"),
        ({"bits": {"*": {"weight": [64]}}}, "/space/bits/*/weight/0", "less than or equal to 32"),
        ({"bits": {"*": {"weight": [7]}}}, "/space/bits", "is legal for"),
        ({"first_last": 1}, "/space/first_last", "greater than or equal to 2"),
        ({"first_last": 30}, "/space/first_last", "is legal for"),
    ],
)
def test_space_when_a_rule_is_wrong_then_its_field_is_named(
    client: TestClient, request_body: Json, space: Json, pointer: str, told: str
) -> None:
    answer = post(client, {**request_body, "space": space})
    assert (answer.status_code, answer.json()["type"]) == (422, "/problems/invalid-search-space")
    assert answer.json()["errors"][0]["pointer"] == pointer
    assert told in answer.json()["errors"][0]["detail"]


def test_preflight_when_rules_are_given_then_the_space_is_smaller(client: TestClient, request_body: Json) -> None:
    def size(**space: Any) -> float:
        answer = client.post("/v1/searches/preflight", json={**request_body, "space": space})
        assert answer.status_code == 200, answer.text
        return float(answer.json()["space_log10"])

    whole, head = size(), size(bits={"head": {"weight": [8]}})
    layer = size(first_last=8)
    assert whole > head > layer
    assert whole > size(max_keeps={"*": 0.5}) > size(max_keeps={"*": 0.25})
    options = len(
        {pair[0] for pair in client.get("/v1/devices/generic-npu").json()["profile"]["rules"]["pairs"]["default"]}
    )
    assert whole - head == pytest.approx(math.log10(options))


def test_preflight_when_ratios_have_a_floor_by_pattern_then_the_space_is_smaller(
    client: TestClient, request_body: Json
) -> None:
    def size(space: Json) -> float:
        answer = client.post("/v1/searches/preflight", json={**request_body, "space": space})
        return float(answer.json()["space_log10"])

    assert size({"prune": False}) < size({"min_keeps": {"*": 0.5}}) < size({})


@pytest.mark.fault(66)
def test_search_when_model_is_not_ready_then_refused(client: TestClient, request_body: Json) -> None:
    model = client.post("/v1/models", content=b"\x08\x0d" + b"q" * 40).json()["id"]
    answer = post(client, {**request_body, "model_id": model})
    assert (answer.status_code, answer.json()["type"]) == (409, "/problems/model-not-ready")


def test_dataset_when_shape_differs_from_the_network_then_refused(
    client: TestClient, service: Service, request_body: Json
) -> None:
    from app.store.tables import Dataset

    with service.database.writing() as session:
        good = session.get_one(Dataset, request_body["dataset"]["all"])
        bad = Dataset(id="dst_bad", name="bad", blob_sha=good.blob_sha, bytes=9, state="ready", spec={})
        bad.info = {"rows": 5, "shape": [1, 28, 28], "dtype": "uint8", "has_labels": False, "classes": None}
        session.add(bad)
    answer = post(client, {**request_body, "dataset": {"all": "dst_bad"}})
    assert answer.json()["type"] == "/problems/invalid-dataset"
    assert answer.json()["errors"][0]["pointer"] == "/dataset/all"


def test_idempotency_key_when_repeated_then_the_first_answer_is_replayed(
    client: TestClient, request_body: Json
) -> None:
    first = post(client, request_body, **{"Idempotency-Key": "one"})
    again = post(client, request_body, **{"Idempotency-Key": "one"})
    assert again.json() == first.json() and again.status_code == 202
    assert again.headers["idempotency-replayed"] == "true"
    other = post(client, {**request_body, "name": "other"}, **{"Idempotency-Key": "one"})
    assert other.json()["type"] == "/problems/idempotency-key-reused"


@pytest.mark.fault(70)
def test_search_when_cancelled_twice_then_idempotent_and_finished(client: TestClient, request_body: Json) -> None:
    key = post(client, request_body).json()["id"]
    first, second = (client.post(f"/v1/searches/{key}/cancel") for _ in range(2))
    assert (first.status_code, second.status_code) == (202, 200)
    assert client.get(f"/v1/searches/{key}").json()["state"] == "cancelled"


def finished_search(client: TestClient, service: Service, body: Json) -> str:
    """Drive a search's rows as a runner would: three trials, the last one failed."""
    key = post(client, body).json()["id"]
    with service.database.writing() as session:
        assert rows.begin(session, key) is not None
    for idx, (bops, accuracy) in enumerate([(100, 0.9), (50, 0.8), (60, 0.7), (10, None)]):
        plan = {
            "idx": idx,
            "kind": "baseline" if idx == 0 else "seed",
            "params": {},
            "assignment": {},
            "sampler_attrs": {},
        }
        metrics = None if accuracy is None else {"accuracy": accuracy, "kl": 1 - accuracy}
        failure = {"kind": "crashed", "detail": "x"} if metrics is None else None
        with service.database.writing() as session:
            rows.claim(session, key, plan, "t")
            result = rows.TrialResult(metrics, failure, {"bops": bops}, 0.0, True, 0.1)
            assert rows.finish(session, key, idx, "t", result)
    with service.database.writing() as session:
        rows.complete(session, key, rows.Outcome.feasible)
    return key


def test_trials_when_listed_then_paged_in_order_with_failures(
    client: TestClient, service: Service, request_body: Json
) -> None:
    key = finished_search(client, service, request_body)
    first = client.get(f"/v1/searches/{key}/trials?limit=3").json()
    rest = client.get(f"/v1/searches/{key}/trials", params={"limit": 3, "cursor": first["next_cursor"]}).json()
    assert [item["idx"] for item in first["items"] + rest["items"]] == [0, 1, 2, 3]
    assert rest["next_cursor"] is None
    assert rest["items"][0]["failure"] == {"kind": "crashed", "detail": "x"}


def test_front_when_asked_then_dominated_failed_and_baseline_trials_are_left_out(
    client: TestClient, service: Service, request_body: Json
) -> None:
    key = finished_search(client, service, request_body)
    body = client.get(f"/v1/searches/{key}/front").json()
    assert body["axes"] == ["accuracy", "bops"]
    assert [item["idx"] for item in body["items"]] == [1]
    assert client.get(f"/v1/searches/{key}/front?axes=beauty").json()["type"] == "/problems/invalid-request"


def test_events_when_replayed_then_every_one_follows_the_last_seen(
    client: TestClient, service: Service, request_body: Json
) -> None:
    key = finished_search(client, service, request_body)
    text = client.get(f"/v1/searches/{key}/events").text
    seqs = [int(line[4:]) for line in text.splitlines() if line.startswith("id: ")]
    assert seqs == [1, 2, 3, 4, 5, 6, 7]
    again = client.get(f"/v1/searches/{key}/events", headers={"Last-Event-ID": "5"}).text
    assert [int(line[4:]) for line in again.splitlines() if line.startswith("id: ")] == [6, 7]
    last = json.loads(again.strip().splitlines()[-1].removeprefix("data: "))
    assert (last["kind"], last["state"], last["outcome"]) == ("state", "completed", "feasible")


@pytest.mark.fault(70)
def test_cancel_when_finished_then_refused(client: TestClient, service: Service, request_body: Json) -> None:
    key = finished_search(client, service, request_body)
    assert client.post(f"/v1/searches/{key}/cancel").json()["type"] == "/problems/already-finished"


def test_trial_when_finished_by_a_stranger_then_nothing_changes(
    client: TestClient, service: Service, request_body: Json
) -> None:
    key = post(client, request_body).json()["id"]
    plan = {"idx": 0, "kind": "baseline", "params": {}, "assignment": {}, "sampler_attrs": {}}
    result = rows.TrialResult({"kl": 0.0}, None, {}, 0.0, True, 0.1)
    with service.database.writing() as session:
        rows.claim(session, key, plan, "first")
        assert rows.claim(session, key, plan, "second").attempt == 2
        assert not rows.finish(session, key, 0, "first", result)
        assert rows.finish(session, key, 0, "second", result)
        assert not rows.finish(session, key, 0, "second", result)


def test_search_when_stored_then_limits_equal_the_domains(
    client: TestClient, service: Service, request_body: Json
) -> None:
    body = post(client, {**request_body, "limits": [{"metric": "latency_ms", "relative": 0.5}]}).json()
    with service.database.reading() as session:
        row = session.get_one(Search, body["id"])
    assert DeviceProfile.from_json(row.device).name == "generic-npu"
    assert Budget(row.limits).limits == body["budget"]["limits"]


def test_preflight_when_asked_then_counts_without_queueing(client: TestClient, request_body: Json) -> None:
    before = len(client.get("/v1/searches?limit=200").json()["items"])
    body = client.post("/v1/searches/preflight", json=request_body).json()
    assert body["feasible"] is True and body["reachable"]["bops"] < body["limits"]["bops"]
    assert body["space_log10"] > 5
    assert len(client.get("/v1/searches?limit=200").json()["items"]) == before


MEASURED = {"metric": "latency_ms", "relative": 0.5, "relative_to": "float", "evidence": "measured"}


def test_measured_limit_when_nobody_can_measure_the_device_then_refused_by_name(
    client: TestClient, request_body: Json
) -> None:
    body = {**request_body, "device_id": "esp32s3", "limits": [MEASURED]}
    assert post(client, body).json()["type"] == "/problems/device-not-measurable"
    answer = post(client, {**body, "agent": "agt_nobody"}).json()
    assert (answer["type"], answer["errors"][0]["pointer"]) == ("/problems/device-not-measurable", "/agent")


def test_measured_limit_when_the_device_is_this_host_then_queued(client: TestClient, request_body: Json) -> None:
    answer = post(client, {**request_body, "device_id": "onnxruntime-cpu", "limits": [MEASURED]})
    assert answer.status_code == 202
    assert answer.json()["request"]["limits"][0]["stat"] == "min"


def test_measured_limit_when_on_another_metric_or_beside_another_then_refused(
    client: TestClient, request_body: Json
) -> None:
    bops = {**MEASURED, "metric": "bops"}
    assert post(client, {**request_body, "limits": [bops]}).status_code == 422
    both = {**request_body, "device_id": "onnxruntime-cpu", "limits": [MEASURED, {"metric": "latency_ms", "max": 9}]}
    assert post(client, both).json()["type"] == "/problems/invalid-budget"


def test_refit_when_nothing_was_measured_then_refused(client: TestClient) -> None:
    answer = client.post("/v1/devices/onnxruntime-cpu:refit")
    assert (answer.status_code, answer.json()["type"]) == (409, "/problems/not-enough-measurements")

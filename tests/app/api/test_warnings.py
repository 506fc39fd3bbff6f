"""Searches that are accepted with a warning: of layers that a host runs, of data that there are not."""

from __future__ import annotations

from typing import Any

import pytest
from fastapi.testclient import TestClient

Json = dict[str, Any]


def post(client: TestClient, body: Any) -> Any:
    return client.post("/v1/searches", json=body)


@pytest.mark.fault(60)
def test_search_when_a_host_runs_some_of_its_layers_then_accepted_with_a_warning_that_names_them(
    client: TestClient, request_body: Json
) -> None:
    profile = client.get("/v1/devices/generic-npu").json()["profile"]
    profile |= {"name": "no-linear", "fallback": {"ops": ["linear"], "gmacs": 0.5, "boundary_us": 30.0}}
    device = client.post("/v1/devices", json=profile).json()
    asked = {**request_body, "device_id": device["id"]}
    made, counted = post(client, asked), client.post("/v1/searches/preflight", json=asked).json()
    assert made.status_code == 202
    for answer in (made.json(), client.get(f"/v1/searches/{made.json()['id']}").json(), counted):
        assert answer["warnings"] == ["latency-fallback"]
        assert answer["fallback_operations"] == ["head"]
    plain = post(client, request_body).json()
    assert (plain["warnings"], plain["fallback_operations"]) == ([], [])


def test_search_when_there_are_no_data_then_queued_with_a_warning_and_no_metric_that_needs_labels(
    client: TestClient, request_body: Json
) -> None:
    asked = {key: value for key, value in request_body.items() if key not in ("metric", "quality")} | {"dataset": None}
    answer = post(client, asked)
    assert answer.status_code == 202
    found = answer.json()
    assert (found["dataset"], found["metric"]) == ({}, "kl")
    assert "no-data" in found["warnings"]
    refused = post(client, {**asked, "metric": "accuracy"})
    assert refused.json()["type"] == "/problems/metric-not-measurable"
    missing = post(client, {key: value for key, value in asked.items() if key != "dataset"})
    assert missing.status_code == 422

"""A whole search over networks that are no picture classifiers: data read, front found, files verified and loaded."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
from fastapi.testclient import TestClient
from numpy.typing import NDArray
from safetensors.numpy import save

import tightfit
from app.actions import Service
from app.domain import ids
from app.main import create_app
from app.settings import Settings
from app.store import blobs
from app.store.tables import Dataset, Model
from tests.worker.digit_files import DEVICE
from tests.zoo import ZOO
from tests.zoo.running import outputs
from tests.zoo.sources import Source, exported
from worker.export.agreement import sqnr_db
from worker.job import Site
from worker.runner import Runner
from worker.sandbox import Child, ChildRefused

Arrays = dict[str, NDArray[Any]]
ROWS, TRIALS = 200, 4
MIN_SQNR_DB = 20.0


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestClient]:
    settings = Settings(data_dir=tmp_path_factory.mktemp("service"), disk_floor_bytes=0)
    with TestClient(create_app(settings)) as http:
        http.headers["Authorization"] = f"Bearer {settings.key_file.read_text().strip()}"
        yield http


@pytest.fixture(scope="module")
def child() -> Iterator[Child]:
    with Child() as process:
        yield process


def service(client: TestClient) -> Service:
    found: Service = client.app.state.service  # type: ignore[attr-defined]
    return found


def arrays(name: str) -> Arrays:
    """Return a dataset without labels: an array per input, called as in the user's file, or `x`."""
    found = [item.numpy() for item in ZOO[name].inputs(ROWS)]
    return {"x": found[0]} if len(found) == 1 else dict(zip(labels(name), found, strict=True))


def labels(name: str) -> list[str]:
    """Return what the file calls the network's inputs."""
    session = ort.InferenceSession(exported(name, Source("script", 17)), providers=["CPUExecutionProvider"])
    return [item.name for item in session.get_inputs()]


def uploaded(client: TestClient, child: Child, name: str, data: Mapping[str, NDArray[Any]]) -> dict[str, str]:
    """Store a network and a dataset as a worker would after reading them in a sandboxed child."""
    owner = service(client)
    held = [owner.blobs.put(content) for content in (exported(name, Source("script", 17)), save(dict(data)))]
    paths = [str(owner.blobs.path(sha)) for sha in held]
    read = child.call("inspect", {"path": paths[0]}, 120)
    info = child.call("inspect_dataset", {"path": paths[1], "spec": {}}, 120)
    model = Model(id=ids.new_id("model"), name=name, format="onnx", blob_sha=held[0], bytes=1, state="ready")
    model.graph = read["graph"]
    rows = Dataset(id=ids.new_id("dataset"), name=name, blob_sha=held[1], bytes=1, state="ready", spec={}, info=info)
    with owner.database.writing() as session:
        for sha in held:
            blobs.record(session, sha, 1)
        session.add_all([model, rows])
    return {"model_id": model.id, "all": rows.id}


def request(made: Mapping[str, str], share: float = 0.24) -> dict[str, Any]:
    return {
        "name": "zoo",
        "model_id": made["model_id"],
        "dataset": {"all": made["all"]},
        "device_id": "generic-npu",
        "limits": [{"metric": "weight_bytes", "relative": share}, {"metric": "bops", "relative": 0.2}],
        "search": {"trials": TRIALS, "seed": 0},
        "export_top": 1,
    }


def searched(client: TestClient, made: Mapping[str, str], share: float) -> tuple[dict[str, Any], dict[str, Any]]:
    """Run a search to its end; return it and its best candidate."""
    answer = client.post("/v1/searches", json=request(made, share))
    assert answer.status_code == 202, answer.text
    owner, key = service(client), answer.json()["id"]
    while Runner(Site(owner.database, owner.blobs), key).run() == "again":
        pass
    found = client.get(f"/v1/searches/{key}/candidates").json()
    return client.get(f"/v1/searches/{key}").json(), found["items"][0]


def files(client: TestClient, candidate: Mapping[str, Any], folder: Path) -> dict[str, Path]:
    """Download a candidate's files; return their paths by kind."""
    found = {}
    for item in candidate["artefacts"]:
        found[item["kind"]] = folder / item["kind"]
        found[item["kind"]].write_bytes(client.get(f"/v1/artefacts/{item['id']}/content").content)
    return found


@pytest.mark.parametrize(
    ("name", "figures", "share"),
    [
        ("two_in_two_out", {"relative_mse"}, 0.24),
        ("text_encoder", set(), 0.5),  # its table of embeddings stays in floats
    ],
)
def test_search_when_the_network_is_no_picture_classifier_then_a_verified_candidate_that_loads(
    client: TestClient, child: Child, tmp_path: Path, name: str, figures: set[str], share: float
) -> None:
    search, candidate = searched(client, uploaded(client, child, name, arrays(name)), share)
    assert (search["state"], search["outcome"], candidate["verification"]) == ("completed", "feasible", "verified")
    holdout = candidate["metrics"]["holdout"]
    assert set(holdout) == {"kl", "agreement", "cosine", "mse"} | figures
    assert 0 <= holdout["kl"] < 1
    assert candidate["costs"]["weight_bytes"] <= 0.24 * search["baseline"]["costs"]["weight_bytes"]
    paths = files(client, candidate, tmp_path)
    inputs = ZOO[name].inputs(16, seed=9)
    loaded = outputs(tightfit.load(paths["checkpoint"]), inputs)
    session = ort.InferenceSession(str(paths["onnx"]), providers=["CPUExecutionProvider"])
    assert [item.name for item in session.get_inputs()] == labels(name)
    ran = session.run(None, {key: item.numpy() for key, item in zip(labels(name), inputs, strict=True)})
    assert len(ran) == len(loaded)
    assert all(sqnr_db(one.numpy(), other) >= MIN_SQNR_DB for one, other in zip(loaded, ran, strict=True))


def test_search_when_an_input_has_no_array_then_refused_by_its_name(client: TestClient, child: Child) -> None:
    data = arrays("two_in_two_out")
    lost = labels("two_in_two_out")[1]
    data.pop(lost)
    answer = client.post("/v1/searches", json=request(uploaded(client, child, "two_in_two_out", data)))
    assert answer.status_code == 422
    assert answer.json()["type"].endswith("/invalid-dataset")
    assert lost in answer.json()["detail"]


def test_open_when_an_id_lies_outside_the_table_then_refused_with_its_row(child: Child, tmp_path: Path) -> None:
    rows = np.zeros((ROWS, 12), np.int64)
    rows[7, 3] = ZOO["text_encoder"].vocabulary or 0
    (tmp_path / "net").write_bytes(exported("text_encoder", Source("script", 17)))
    (tmp_path / "data").write_bytes(save({"x": rows}))
    data = {"all": {"path": str(tmp_path / "data"), "spec": {}}}
    with pytest.raises(ChildRefused, match=r"row 7 of 'x' holds ids outside 0\.\.49") as caught:
        child.call("open", {"model": str(tmp_path / "net"), "datasets": data, "device": DEVICE.to_json()}, 120)
    assert (caught.value.slug, caught.value.errors[0]["pointer"]) == ("invalid-dataset", "/x/7")

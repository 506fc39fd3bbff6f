"""A weights version through the whole of the worker: read, searched, measured and exported as the network it is."""

from __future__ import annotations

import dataclasses
import io
import json
import zipfile
from typing import Any

import numpy as np
import pytest
import sqlalchemy as sa
import torch
from safetensors.torch import save
from sklearn.datasets import load_digits

from app import actions, queue
from app.settings import Settings
from app.store.tables import Artefact, Model
from tests.reliability.rig import Rig, wait
from tests.worker.digit_files import TRAIN, Net, trained
from worker.job import Site, load_job
from worker.runner import Runner

TRIALS = 4


@pytest.fixture(scope="module")
def again() -> Net:
    """The digits network, trained on a part of the rows: other weights, another accuracy."""
    digits = load_digits()
    x = torch.from_numpy(digits.images[: TRAIN // 2, None].astype(np.float32) / 16)
    return trained(x, torch.from_numpy(digits.target[: TRAIN // 2]).long()).eval()


def pushed(rig: Rig, data: bytes) -> str:
    """Record new weights of the rig's network as the service would; return the model's id."""
    settings = Settings(data_dir=rig.folder, database_url=rig.database.url)
    service = actions.Service(settings, rig.database, rig.blobs, queue.client(rig.database))
    return actions.create_weights(service, "default", rig.model_id, None, rig.blobs.put(data), len(data)).id


def model(rig: Rig, key: str) -> Model:
    with rig.database.reading() as session:
        return session.get_one(Model, key)


@pytest.fixture(scope="module")
def versions(rig: Rig, again: Net) -> tuple[str, str]:
    """A sound weights version and one whose names are another network's, after a real worker has read them."""
    sound = pushed(rig, save(dict(again.state_dict())))
    odd = pushed(rig, save({f"net.{name}": tensor for name, tensor in again.state_dict().items()}))
    worker = rig.start_worker("w0")
    try:
        for key in (sound, odd):
            wait(lambda key=key: model(rig, key).state != "inspecting", 120, "a worker has read the weights")
    finally:
        worker.kill()
        worker.wait()
    return sound, odd


def searched(rig: Rig, model_id: str) -> Any:
    """Run a search on a model to its end; return its row."""
    search = dataclasses.replace(rig, model_id=model_id).add_search(TRIALS)
    assert Runner(Site(rig.database, rig.blobs), search).run() == "finished"
    return rig.search(search)


def manifest(rig: Rig, candidate_id: str) -> dict[str, Any]:
    """Return the manifest in a candidate's checkpoint."""
    wanted = sa.select(Artefact).where(Artefact.candidate_id == candidate_id, Artefact.kind == "checkpoint")
    with rig.database.reading() as session:
        file = session.scalars(wanted).one()
    with zipfile.ZipFile(io.BytesIO(rig.blobs.read(file.blob_sha))) as archive:
        found: dict[str, Any] = json.loads(archive.read("manifest.json"))
        return found


def test_version_when_read_then_ready_with_the_picture_of_its_base(rig: Rig, versions: tuple[str, str]) -> None:
    made, base = model(rig, versions[0]), model(rig, rig.model_id)
    assert (made.state, made.problem, made.format) == ("ready", None, "pt2")
    assert made.graph == base.graph
    assert (made.base_id, made.blob_sha, made.name) == (base.id, base.blob_sha, base.name)


def test_version_when_the_names_are_others_then_rejected_with_the_names(rig: Rig, versions: tuple[str, str]) -> None:
    made = model(rig, versions[1])
    assert (made.state, made.graph) == ("rejected", None)
    problem = made.problem or {}
    assert problem["type"] == "/problems/weights-mismatch"
    assert {item["pointer"] for item in problem["errors"] if item["code"] == "missing"} == {
        f"/weights/{layer}.{part}" for layer in ("first", "second", "last") for part in ("weight", "bias")
    }
    assert sum(item["code"] == "unexpected" for item in problem["errors"]) == 6


def test_search_when_on_a_version_then_its_own_weights_are_measured_and_its_files_tell_both_digests(
    rig: Rig, versions: tuple[str, str], again: Net
) -> None:
    old = searched(rig, rig.model_id)  # first: what it stored must not serve the version
    new = searched(rig, versions[0])
    assert (new.state, new.outcome, new.error) == ("completed", "feasible", None)
    digits = load_digits()
    x = torch.from_numpy(digits.images[TRAIN:, None].astype(np.float32) / 16)
    wanted = again(x).argmax(1) == torch.from_numpy(digits.target[TRAIN:])
    scores = [search.baseline["metrics"]["accuracy"] for search in (old, new)]
    assert scores[0] != scores[1]
    assert scores[1] == pytest.approx(float(wanted.float().mean()), abs=0.03)  # 438 of the 1,097 rows
    best = rig.candidates(new.id)[0]
    assert (best.export_state, best.verification) == ("done", "verified")
    names = manifest(rig, best.id)["names"]
    row = model(rig, versions[0])
    assert (names["model_sha256"], names["weights_sha256"]) == (row.blob_sha, row.weights_sha)
    assert manifest(rig, rig.candidates(old.id)[0].id)["names"]["weights_sha256"] is None


def test_job_when_the_model_is_a_version_then_both_files_are_opened_and_its_measurements_are_its_own(
    rig: Rig, versions: tuple[str, str]
) -> None:
    site = Site(rig.database, rig.blobs)
    plain = load_job(site, rig.add_search(TRIALS))
    version = load_job(site, dataclasses.replace(rig, model_id=versions[0]).add_search(TRIALS))
    assert plain.opening["weights"] is None
    assert version.opening["weights"] == str(rig.blobs.path(str(model(rig, versions[0]).weights_sha)))
    assert version.opening["model"] == plain.opening["model"]
    assert plain.digests[0] == model(rig, rig.model_id).blob_sha  # as before: stored measurements stay good
    assert version.digests[0] != plain.digests[0] and version.digests[1] == plain.digests[1]

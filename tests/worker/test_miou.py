"""A network that names every pixel's class, searched by mean intersection over union through all of the worker."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from app.store.tables import Dataset, Prediction, Search
from tests.reliability.rig import Rig, build
from tests.worker.digit_files import TRAIN, exported, fitted
from worker.job import Site
from worker.runner import Runner
from worker.sandbox import Child

EDGES = (5, 11)
TRIALS = 8


class Pixels(nn.Module):
    """Two convolutions that tell dark, grey and bright pixels apart."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(1, 12, 3, padding=1), nn.Conv2d(12, 3, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.second(F.relu(self.first(x)))


def classes(images: Any) -> Any:
    """Return the class of every pixel: 0 below five, 1 below eleven, else 2."""
    return np.digitize(images, EDGES).astype(np.int64)


def trained(images: Any) -> nn.Module:
    torch.manual_seed(0)
    net = Pixels()
    x, y = torch.from_numpy(images[:, None].astype(np.float32) / 16), torch.from_numpy(classes(images))
    return fitted(net, x, y, 20)


@pytest.fixture(scope="module")
def searched(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Rig, str]]:
    """A finished search that is asked for mIoU at most half below the float network's."""
    from sklearn.datasets import load_digits

    folder, images = tmp_path_factory.mktemp("pixels"), load_digits().images
    (folder / "net.pt2").write_bytes(exported(trained(images[:TRAIN])))
    rest = images[TRAIN:]
    np.savez_compressed(folder / "digits.npz", x=rest[:, None].astype(np.uint8), y=classes(rest).astype(np.uint8))
    with Child() as child:
        graph = child.call("inspect", {"path": str(folder / "net.pt2")}, 120)["graph"]
        info = child.call("inspect_dataset", {"path": str(folder / "digits.npz"), "spec": {}}, 120)
    assert (info["classes"], info["label_shape"]) == (3, [8, 8])
    rig = build(f"sqlite:///{folder / 'app.db'}", folder, folder, graph)
    key = rig.add_search(TRIALS, polish=True)
    with rig.database.writing() as session:
        session.get_one(Dataset, rig.dataset_id).info = info
        row = session.get_one(Search, key)
        row.spec = {**row.spec, "metric": "miou", "quality": {"metric": "miou", "max_drop": 0.5}}
    assert Runner(Site(rig.database, rig.blobs), key).run() == "finished"
    yield rig, key
    rig.database.dispose()


def test_run_when_pixels_are_labelled_then_candidates_are_ranked_and_judged_by_miou(searched: tuple[Rig, str]) -> None:
    rig, key = searched
    ended, found = rig.search(key), rig.candidates(key)
    assert (ended.state, ended.outcome, ended.error) == ("completed", "feasible", None)
    baseline = (ended.baseline or {})["holdout"]
    assert 0.7 < baseline["miou"] < baseline["accuracy"]
    assert (ended.baseline or {})["warnings"] == []
    values = [item.metrics["holdout"]["miou"] for item in found]
    assert values == sorted(values, reverse=True) and len(set(values)) > 1
    judged = found[0].metrics["quality"]
    assert (judged["metric"], judged["value"], judged["met"]) == ("miou", values[0], True)
    assert judged["floor"] == pytest.approx(baseline["miou"] - 0.5)
    assert found[0].verification == "verified"


def test_run_when_it_ends_then_predictions_say_what_miou_to_expect(searched: tuple[Rig, str]) -> None:
    rig, key = searched
    with rig.database.reading() as session:
        rows = session.query(Prediction).filter_by(search_id=key).order_by(Prediction.loss).all()
        figures = [(row.metrics or {})["miou"] for row in rows]
    assert figures == sorted(figures, reverse=True)
    assert all(0 < value <= 1 for value in figures)

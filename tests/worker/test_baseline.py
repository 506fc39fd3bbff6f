"""Float networks that nothing can be compared with, through the whole of the worker: ended by name, or warned of."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from app.domain import ids
from app.store import blobs
from app.store.tables import Dataset, Search
from tests.reliability.rig import Rig, build
from tests.worker.digit_files import SPEC, Net, exported
from worker.job import Site
from worker.runner import Runner
from worker.sandbox import Child

TRIALS = 4


class Rooted(Net):
    """Answers with roots: NaN where the digits network answers below zero."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.sqrt(super().forward(x))


class RootsOfPixels(Net):
    """Reads the roots of its pixels: NaN where one is below zero."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(torch.sqrt(x))


class Overflowing(Net):
    """Answers far beyond float32: every one is infinite."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x) * 1e30 * 1e30


class Dead(Net):
    """Its second convolution never passes its ReLU."""

    def __init__(self) -> None:
        super().__init__()
        with torch.no_grad():
            assert self.second.bias is not None
            self.second.bias.fill_(-1000.0)


def run(folder: Path, net: bytes, digits: bytes) -> tuple[Rig, str]:
    """Search on a network and a dataset; return the rig and the search."""
    made = rigged(folder, net, digits)
    search = made.add_search(TRIALS)
    assert Runner(Site(made.database, made.blobs), search).run() == "finished"
    return made, search


def rigged(folder: Path, net: bytes, digits: bytes) -> Rig:
    """Store a network and a dataset."""
    (folder / "net.pt2").write_bytes(net)
    (folder / "digits.npz").write_bytes(digits)
    with Child() as child:
        graph: dict[str, Any] = child.call("inspect", {"path": str(folder / "net.pt2")}, 120)["graph"]
    return build(f"sqlite:///{folder / 'app.db'}", folder, folder, graph)


@pytest.mark.fault(69)
@pytest.mark.parametrize(
    ("net", "slug", "told"),
    [
        (Rooted, "baseline-not-finite", "NaN or infinite for"),
        (Overflowing, "baseline-not-finite", "for 439 of 439 rows, first for row 0; check the dataset's scale"),
        (Dead, "constant-outputs", "the same for all 439 rows; check that the file holds the trained weights"),
    ],
)
def test_run_when_the_float_network_tells_nothing_apart_then_failed_by_name_before_any_probe(
    tmp_path: Path, files: Path, net: type[Net], slug: str, told: str
) -> None:
    torch.manual_seed(0)
    rig, key = run(tmp_path, exported(net()), (files / "digits.npz").read_bytes())
    ended = rig.search(key)
    assert (ended.state, ended.error and ended.error["type"]) == ("failed", f"/problems/{slug}")
    assert "evaluation set" in ended.error["detail"] and told in ended.error["detail"]
    assert [trial.state for trial in rig.trials(key)] == ["failed"]
    assert ended.sensitivity is None
    rig.database.dispose()


def test_run_when_the_float_network_fails_on_the_holdout_set_alone_then_failed_by_name_at_the_end(
    tmp_path: Path, files: Path
) -> None:
    torch.manual_seed(0)
    stored, parts = np.load(files / "digits.npz"), {}
    rig = rigged(tmp_path, exported(RootsOfPixels()), (files / "digits.npz").read_bytes())
    for place, role in enumerate(("calibration", "evaluation", "holdout")):
        x, y = (stored[name][place * 300 : (place + 1) * 300] for name in "xy")
        x = x.astype(np.float32)
        x[7, 0, 2, 2] = -1.0 if role == "holdout" else 1.0
        np.savez(tmp_path / "part.npz", x=x, y=y)
        sha, size = rig.blobs.put_file(tmp_path / "part.npz")
        with rig.database.writing() as session:
            blobs.record(session, sha, size)
            parts[role] = Dataset(
                id=ids.new_id("dataset"), name=role, blob_sha=sha, bytes=size, state="ready", spec=SPEC
            )
            session.add(parts[role])
    key = rig.add_search(TRIALS)
    with rig.database.writing() as session:
        session.get_one(Search, key).dataset = {role: row.id for role, row in parts.items()}
    assert Runner(Site(rig.database, rig.blobs), key).run() == "finished"
    ended = rig.search(key)
    assert (ended.state, ended.error and ended.error["type"]) == ("failed", "/problems/baseline-not-finite")
    assert "hold-out set: outputs are NaN or infinite for 1 of 300 rows, first for row 7" in ended.error["detail"]
    assert {trial.state for trial in rig.trials(key)} == {"done"}
    rig.database.dispose()


@pytest.mark.parametrize(("shift", "warned"), [(5, ["baseline-is-guessing"]), (0, [])])
def test_run_when_labels_are_those_of_other_rows_then_warned_of_and_searched_all_the_same(
    tmp_path: Path, files: Path, shift: int, warned: list[str]
) -> None:
    stored, out = np.load(files / "digits.npz"), io.BytesIO()
    np.savez_compressed(out, x=stored["x"], y=(stored["y"] + shift) % 10)
    rig, key = run(tmp_path, (files / "net.pt2").read_bytes(), out.getvalue())
    ended = rig.search(key)
    assert ended.state == "completed"
    assert (ended.baseline or {})["warnings"] == warned
    assert ((ended.baseline or {})["holdout"]["accuracy"] < 0.2) == bool(warned)
    rig.database.dispose()

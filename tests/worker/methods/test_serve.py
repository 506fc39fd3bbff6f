"""A method inside the sandbox: an epoch per call, its state in a folder."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from app.domain.methods import ChannelGating, StraightThrough, Training, to_json
from tests.worker.methods.digit_subject import rows, space
from tests.worker.quant.digits import assignment, fresh, trained
from worker.export.checkpoint import read_checkpoint
from worker.methods import NETWORK, STATE, serve
from worker.search.evaluate import Evaluator


@pytest.fixture(scope="module")
def owner() -> Evaluator:
    made = fresh()
    made.rows = rows()
    return made


def params(folder: Path, epochs: int = 2) -> dict[str, Any]:
    chosen = assignment(trained().graph, 0.5, 2, 4)
    method = to_json(StraightThrough(Training(epochs=epochs, batch=64, shift=0)))
    own = {"assignment": chosen.to_json(), "space": space().to_json(), "repair": "fast"}
    return {**own, "method": method, "limits": {}, "folder": str(folder)}


def test_epoch_when_the_last_is_done_then_the_network_lies_in_the_folder(owner: Evaluator, tmp_path: Path) -> None:
    serving = serve.opened(owner, params(tmp_path))
    assert serving.epoch(last=False)["done"] is False
    assert not (tmp_path / NETWORK).exists()
    assert serving.epoch(last=False)["done"] is True
    network, _ = read_checkpoint((tmp_path / NETWORK).read_bytes())
    assert network.assignment == assignment(trained().graph, 0.5, 2, 4)


def test_opened_when_there_is_a_state_then_gone_on_with(owner: Evaluator, tmp_path: Path) -> None:
    serve.opened(owner, params(tmp_path)).epoch(last=False)
    found = serve.opened(owner, params(tmp_path)).epoch(last=False)
    assert (found["epoch"]["number"], found["done"]) == (2, True)


def test_opened_when_the_state_is_damaged_then_from_the_start(owner: Evaluator, tmp_path: Path) -> None:
    (tmp_path / STATE).write_bytes(b"junk")
    assert serve.opened(owner, params(tmp_path)).epoch(last=False)["epoch"]["number"] == 1


def test_epoch_when_no_further_one_is_wanted_then_the_network_as_it_is(owner: Evaluator, tmp_path: Path) -> None:
    found = serve.opened(owner, params(tmp_path, epochs=9)).epoch(last=True)
    assert (found["epoch"]["number"], found["done"]) == (1, True)
    assert (tmp_path / NETWORK).exists()


def test_epoch_when_the_loss_is_not_finite_then_named_and_nothing_stored(tmp_path: Path) -> None:
    owner = fresh()
    owner.rows = replace(rows(), inputs=(rows().inputs[0] * float("inf"),))
    found = serve.opened(owner, params(tmp_path)).epoch(last=False)
    assert found["failure"]["kind"] == "loss-not-finite"
    assert not [*tmp_path.iterdir()]


def test_opened_when_a_method_can_not_begin_then_its_first_epoch_says_why(owner: Evaluator, tmp_path: Path) -> None:
    asked = {**params(tmp_path), "method": to_json(ChannelGating(block=64))}
    found = serve.opened(owner, asked).epoch(last=False)
    assert found["failure"]["kind"] == "nothing-legal"
    assert "blocks of 64" in found["failure"]["detail"]


def test_key_when_anything_but_the_last_differs_then_another_one(tmp_path: Path) -> None:
    one = params(tmp_path)
    assert serve.key_of({**one, "last": True}) == serve.key_of(one)
    assert serve.key_of({**one, "repair": "sequential"}) != serve.key_of(one)

"""One method at work inside the sandbox, an epoch per call; its state lies in a folder between them."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

from app.domain.budget import Budget
from app.domain.methods import method_of
from app.domain.space import Assignment, SearchSpace
from worker.export.checkpoint import write_checkpoint
from worker.methods import NETWORK, STATE, registry
from worker.methods.protocol import Epoch, LossNotFinite, NothingLegal, Stage, Subject
from worker.quant.network import CompressedNetwork
from worker.search.evaluate import Evaluator

Json = dict[str, Any]
_OWN = ("assignment", "repair", "method", "limits", "space", "folder")
FAILURES: Mapping[type[Exception], str] = {LossNotFinite: "loss-not-finite", NothingLegal: "nothing-legal"}


class Serving:
    """One stage, kept between calls."""

    def __init__(self, key: str, stage: Stage, folder: Path) -> None:
        self.key, self._stage, self._folder = key, stage, folder

    def epoch(self, last: bool) -> Json:
        """Train an epoch, store the state, and behind the last epoch the network; return {"epoch"} or {"failure"}.

        `last`: no further one will be asked for. Behind it the network's `assignment` is told too.
        """
        try:
            return self._epoch(last)
        except tuple(FAILURES) as error:
            return {"failure": {"kind": FAILURES[type(error)], "detail": str(error)}}

    def _epoch(self, last: bool) -> Json:
        found = None if self._stage.done else self._stage.fit()
        if found is not None:
            _put(self._folder / STATE, self._stage.state())
        told: Json = {"epoch": None if found is None else asdict(found), "done": last or self._stage.done}
        if told["done"]:
            network = self._stage.finish()
            _put(self._folder / NETWORK, write_checkpoint(network, {}))
            told["assignment"] = network.assignment.to_json()
        return told


def key_of(params: Json) -> str:
    """Return what tells one stage from another."""
    return json.dumps([params[name] for name in _OWN], sort_keys=True)


def opened(evaluator: Evaluator, params: Json) -> Serving:
    """Return a stage, gone on from the state in its folder where there is a sound one."""
    network = evaluator.compress(Assignment.from_json(params["assignment"]), params["repair"])
    subject = Subject(
        network,
        evaluator.folded,
        evaluator.graph,
        evaluator.compressor.device,
        Budget(params["limits"]),
        evaluator.rows,
        evaluator.compressor,
        SearchSpace.from_json(params["space"]),
    )
    folder = Path(params["folder"])
    try:
        stage = registry.prepare(subject, method_of(params["method"]))
    except tuple(FAILURES) as error:
        return Serving(key_of(params), _Unfit(error), folder)
    with suppress(FileNotFoundError, ValueError):  # a damaged state: from the start
        stage.restore((folder / STATE).read_bytes())
    return Serving(key_of(params), stage, folder)


class _Unfit:
    """A stage that could not even begin: its first epoch says why."""

    done = False

    def __init__(self, error: Exception) -> None:
        self._error = error

    def fit(self) -> Epoch:
        """Raise what kept it from beginning."""
        raise self._error

    def state(self) -> bytes:
        """Return nothing: there is no state."""
        return b""

    def restore(self, state: bytes) -> None:
        """Take nothing."""

    def finish(self) -> CompressedNetwork:
        """Raise what kept it from beginning."""
        raise self._error


def _put(path: Path, content: bytes) -> None:
    """Write a file whole or not at all."""
    unfinished = path.with_suffix(".unfinished")
    with unfinished.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    unfinished.replace(path)

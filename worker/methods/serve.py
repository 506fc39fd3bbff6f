"""One method at work inside the sandbox, an epoch per call; its state lies in a folder between them."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import asdict
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from app.domain.budget import Budget
from app.domain.methods import method_of
from app.domain.space import Assignment, SearchSpace
from worker.export.checkpoint import write_checkpoint
from worker.methods import NETWORK, STATE, registry
from worker.methods.protocol import LossNotFinite, NothingLegal, Stage, Subject
from worker.search.evaluate import Evaluator

Json = dict[str, Any]
_OWN = ("assignment", "repair", "method", "limits", "space", "folder")
FAILURES: Mapping[type[Exception], str] = {LossNotFinite: "loss-not-finite", NothingLegal: "nothing-legal"}


class Serving:
    """One stage, kept between calls; it is prepared by the first one, so that what keeps it from beginning is told
    like any other failure."""

    def __init__(self, key: str, prepare: Callable[[], Stage], folder: Path) -> None:
        self.key, self._prepare, self._folder = key, prepare, folder

    @cached_property
    def _stage(self) -> Stage:
        """Return the stage, gone on from the state in its folder where there is a sound one."""
        stage = self._prepare()
        with suppress(FileNotFoundError, ValueError):  # a damaged state: from the start
            stage.restore((self._folder / STATE).read_bytes())
        return stage

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
    """Return the stage that a request asks for, to be prepared at its first epoch."""
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
    prepare = partial(registry.prepare, subject, method_of(params["method"]))
    return Serving(key_of(params), prepare, Path(params["folder"]))


def _put(path: Path, content: bytes) -> None:
    """Write a file whole or not at all."""
    unfinished = path.with_suffix(".unfinished")
    with unfinished.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    unfinished.replace(path)

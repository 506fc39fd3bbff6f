"""What the parts share: training pictures as calibration rows, a method fitted to its end, the test error."""

from __future__ import annotations

import json

import numpy as np

from app.domain.device import DeviceProfile
from app.domain.methods import Method
from benchmarks.budgets import DEVICE
from benchmarks.cells import SHARED
from benchmarks.networks import NETWORKS, arrays_of, network, pictures
from worker.data import Dataset, DatasetSpec, Role, RoleData, role_data
from worker.methods import registry
from worker.methods.protocol import Subject
from worker.quant.network import CompressedNetwork
from worker.search.evaluate import Evaluator, Opened
from worker.search.metrics import Outputs
from worker.search.metrics import measure as measured

Case = tuple[Opened, dict[Role, RoleData], DeviceProfile]
MOST = 15_000


def training_rows(name: str) -> Case:
    """Return a reference network with `MOST` of its training pictures as calibration rows, and the search's device."""
    mean, std = json.loads((SHARED / "models" / f"{name}.json").read_text())["norm"]
    loaded = arrays_of(NETWORKS[name], ("train",))
    spec = DatasetSpec("NHWC", 1 / 255, tuple(mean), tuple(std))
    dataset = Dataset({"x": loaded["x_train"]}, loaded["y_train"].astype(np.int64), spec)
    opened = network(name)
    rows = role_data(dataset, opened.graph.inputs, np.arange(MOST))
    return opened, {**pictures(name), "calibration": rows}, DEVICE


def trained(subject: Subject, method: Method) -> CompressedNetwork:
    """Return a subject's network behind a method."""
    stage = registry.prepare(subject, method)
    while not stage.done:
        stage.fit()
    return stage.finish()


def error(owner: Evaluator, network: CompressedNetwork | None) -> float:
    """Return a network's error on the test pictures in per cent; None: the float network's."""
    wanted = owner.float_outputs("holdout")
    return wrong(owner, wanted if network is None else owner.outputs(network, "holdout"))


def wrong(owner: Evaluator, outputs: Outputs) -> float:
    """Return the error of answers to the test pictures in per cent."""
    found = measured(outputs, owner.float_outputs("holdout"), owner.graph.outputs, owner.pictures("holdout").labels)
    return 100 * (1 - found["accuracy"])

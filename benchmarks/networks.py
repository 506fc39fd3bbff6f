"""The reference networks with their pictures: validation pictures for every decision, test pictures as hold-out."""

from __future__ import annotations

import importlib.util
from functools import cache
from types import ModuleType
from typing import Any

import numpy as np

from benchmarks.cells import SHARED
from worker.data import Dataset, DatasetSpec, Role, RoleData, role_data
from worker.search.evaluate import Opened, open_network

NETWORKS = {"lenet5bn_mnist": "mnist", "vgg7_cifar10": "cifar10", "resnet8_cifar10": "cifar10"}
CALIBRATION = 1000


def available() -> bool:
    """Tell whether the reference data folder is there."""
    return (SHARED / "models" / "resnet8_cifar10.onnx").exists()


def _module(name: str, file: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, SHARED / file)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def arrays(dataset: str) -> dict[str, Any]:
    """Return the decoded arrays of a dataset that decisions and hold-outs take."""
    return arrays_of(dataset, ("val", "test"))


@cache
def arrays_of(dataset: str, splits: tuple[str, ...]) -> dict[str, Any]:
    """Return the decoded arrays of some of a dataset's splits: train, val, test."""
    loaded: dict[str, Any] = _module("shared_load", "load.py").load(dataset, splits=splits)
    return loaded


@cache
def pictures(name: str) -> dict[Role, RoleData]:
    """Return the three roles of a network's dataset."""
    import json

    dataset = NETWORKS[name]
    loaded = arrays(dataset)
    mean, std = json.loads((SHARED / "models" / f"{name}.json").read_text())["norm"]
    spec = DatasetSpec("NHWC", 1 / 255, tuple(mean), tuple(std))
    val = Dataset({"x": loaded["x_val"]}, loaded["y_val"].astype(np.int64), spec)
    test = Dataset({"x": loaded["x_test"]}, loaded["y_test"].astype(np.int64), spec)
    ports = network(name).graph.inputs
    return {
        "calibration": role_data(val, ports, np.arange(CALIBRATION)),
        "evaluation": role_data(val, ports, np.arange(CALIBRATION, len(val))),
        "holdout": role_data(test, ports),
    }


@cache
def network(name: str) -> Opened:
    """Return a reference network, read."""
    return open_network((SHARED / "models" / f"{name}.onnx").read_bytes())

"""What the parts share: training pictures as calibration rows, a method fitted to its end, the test error."""

from __future__ import annotations

import hashlib
import json

import numpy as np

from app.domain.budget import Budget
from app.domain.candidate import Fidelity
from app.domain.device import DeviceProfile
from app.domain.methods import Method
from app.domain.space import build_space
from benchmarks.budgets import DEVICE, same_everywhere
from benchmarks.cells import RESULTS, SHARED
from benchmarks.networks import NETWORKS, arrays_of, network, pictures
from worker.data import Dataset, DatasetSpec, Role, RoleData, role_data
from worker.methods import registry
from worker.methods.protocol import Stage, Subject
from worker.quant.network import CompressedNetwork
from worker.search.evaluate import Evaluator, EvaluatorOptions, Opened, open_evaluator
from worker.search.metrics import Outputs
from worker.search.metrics import measure as measured

Case = tuple[Opened, dict[Role, RoleData], DeviceProfile]
MOST = 15_000


def training_rows(name: str, most: int = MOST) -> Case:
    """Return a reference network with `most` of its training pictures as calibration rows, and the search's device."""
    mean, std = json.loads((SHARED / "models" / f"{name}.json").read_text())["norm"]
    loaded = arrays_of(NETWORKS[name], ("train",))
    spec = DatasetSpec("NHWC", 1 / 255, tuple(mean), tuple(std))
    dataset = Dataset({"x": loaded["x_train"]}, loaded["y_train"].astype(np.int64), spec)
    opened = network(name)
    rows = role_data(dataset, opened.graph.inputs, np.arange(most))
    return opened, {**pictures(name), "calibration": rows}, DEVICE


def prepared(case: Case, bits: int) -> tuple[Evaluator, Subject]:
    """Return an evaluator, and as a subject the network that a search hands over at equal bits, nothing pruned."""
    opened, data, device = case
    owner = open_evaluator(opened, data, device, EvaluatorOptions(full=5000))
    network = owner.compress(same_everywhere(owner.graph, bits, bits, 1.0))
    space = build_space(owner.graph, device)
    return owner, Subject(network, owner.folded, owner.graph, device, Budget({}), owner.rows, owner.compressor, space)


def trained(subject: Subject, method: Method, name: str) -> CompressedNetwork:
    """Return a subject's network behind a method."""
    return fitted(registry.prepare(subject, method), f"{name} {method}")


def fitted(stage: Stage, name: str) -> CompressedNetwork:
    """Return what a stage comes to; its state is kept under a name until it is done, so that a kill costs an epoch."""
    file = RESULTS / f"papers-{hashlib.sha256(name.encode()).hexdigest()[:16]}.state"
    if file.exists():
        stage.restore(file.read_bytes())
    while not stage.done:
        stage.fit()
        RESULTS.mkdir(parents=True, exist_ok=True)
        file.with_suffix(".part").write_bytes(stage.state())
        file.with_suffix(".part").replace(file)
    made = stage.finish()
    file.unlink(missing_ok=True)
    return made


def error(owner: Evaluator, network: CompressedNetwork | None, role: Fidelity = "holdout") -> float:
    """Return a network's error in per cent, on the test pictures or those that decide; None: the float network's."""
    wanted = owner.float_outputs(role)
    return wrong(owner, wanted if network is None else owner.outputs(network, role), role)


def wrong(owner: Evaluator, outputs: Outputs, role: Fidelity = "holdout") -> float:
    """Return the error of answers in per cent."""
    found = measured(outputs, owner.float_outputs(role), owner.graph.outputs, owner.pictures(role).labels)
    return 100 * (1 - found["accuracy"])

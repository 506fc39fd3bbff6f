"""A subject of training: the digits network, narrow in channels and bits, and the rows it may be fitted on."""

from __future__ import annotations

import functools

import numpy as np

from app.domain.budget import Budget
from tests.worker.quant.digits import PORTS, TRAIN, assignment, dataset, device, evaluator, trained
from worker.data import RoleData, role_data
from worker.methods.protocol import Subject
from worker.quant.network import CompressedNetwork
from worker.search.metrics import measure


@functools.cache
def rows() -> RoleData:
    return role_data(dataset(), PORTS, np.arange(TRAIN))


@functools.cache
def subject(keep: float = 0.5, bits: int = 2) -> Subject:
    network = evaluator().compress(assignment(trained().graph, keep, bits, 4), "sequential")
    return Subject(network, trained().folded, trained().graph, device(), Budget({}), rows())


def loss(network: CompressedNetwork) -> float:
    """Return a network's divergence from the float answers on pictures that nothing was fitted on."""
    owner = evaluator()
    outputs, wanted = owner.outputs(network, "full"), owner.float_outputs("full")
    return measure(outputs, wanted, owner.graph.outputs, None)["kl"]

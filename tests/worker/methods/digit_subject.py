"""A subject of training: the digits network, narrow in channels and bits, and the rows it may be fitted on."""

from __future__ import annotations

import functools

import numpy as np

from app.domain.budget import Budget
from app.domain.space import Assignment, SearchSpace, build_space
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
    return subject_of(assignment(trained().graph, keep, bits, 4))


def subject_of(chosen: Assignment, budget: Budget = Budget({})) -> Subject:
    """Return the subject of an assignment under a budget."""
    owner, found = evaluator(), trained()
    network = owner.compress(chosen, "sequential")
    return Subject(network, found.folded, found.graph, device(), budget, rows(), owner.compressor, space())


@functools.cache
def space() -> SearchSpace:
    return build_space(trained().graph, device())


def loss(network: CompressedNetwork) -> float:
    """Return a network's divergence from the float answers on pictures that nothing was fitted on."""
    owner = evaluator()
    outputs, wanted = owner.outputs(network, "full"), owner.float_outputs("full")
    return measure(outputs, wanted, owner.graph.outputs, None)["kl"]

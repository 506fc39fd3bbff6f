"""What the methods share that train nothing: one epoch, and the loss behind it."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor

from worker.methods.protocol import Epoch, LossNotFinite, Subject
from worker.methods.training import divergence, several
from worker.quant.network import CompressedNetwork
from worker.quant.reference import fitting

Batches = Sequence[Sequence[Tensor]]


class UntrainedStage(ABC):
    """A stage that makes its network at once, on at most `rows` rows (see `worker.methods.protocol.Stage`)."""

    def __init__(self, subject: Subject, rows: int) -> None:
        self._subject = subject
        self._rows = subject.rows.head(rows)
        self._made: CompressedNetwork | None = None

    @property
    def done(self) -> bool:
        """Tell whether the network is made."""
        return self._made is not None

    def fit(self) -> Epoch:
        """Make the network; the loss is the divergence from the float network behind it. Raises LossNotFinite."""
        started, subject = time.perf_counter(), self._subject
        size = fitting(subject.folded, max(1, len(self._rows)))
        batches = list(zip(*(item.split(size) for item in self._rows.inputs), strict=True))
        made, note = self._make(batches)
        loss = loss_behind(subject, made, batches)
        self._made = made
        return Epoch(1, 1, loss, time.perf_counter() - started, note)

    @abstractmethod
    def _make(self, batches: Batches) -> tuple[CompressedNetwork, str]:
        """Return the network, and a remark."""

    def finish(self) -> CompressedNetwork:
        """Return the network that was made, or the subject's as it was before `fit`."""
        return self._subject.network if self._made is None else self._made


def loss_behind(subject: Subject, network: CompressedNetwork, batches: Batches) -> float:
    """Return the mean divergence of a network's answers from the float network's. Raises LossNotFinite."""
    total, count = 0.0, 0
    try:
        with torch.no_grad():
            for batch in batches:
                answers, wanted = (several(net(*batch)) for net in (network.forward, subject.folded))
                parts = zip(answers, wanted, subject.graph.outputs, strict=True)
                total += len(batch[0]) * sum(float(divergence(*part)) for part in parts)
                count += len(batch[0])
    except ArithmeticError as error:  # a value on no grid
        raise LossNotFinite(str(error)) from error
    if not total < float("inf"):
        raise LossNotFinite(f"the loss is {total} in epoch 1")
    return total / max(1, count)

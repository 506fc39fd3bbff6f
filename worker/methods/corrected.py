"""Bias correction as a stage of a search: one epoch, nothing trained (see `worker.methods.bias`)."""

from __future__ import annotations

import time
from collections.abc import Sequence

import torch
from safetensors.torch import load, save
from torch import Tensor

from app.domain import methods as domain
from worker.methods.bias import BiasCorrector, input_moments
from worker.methods.protocol import Epoch, LossNotFinite, Subject
from worker.methods.training import divergence, several
from worker.quant.network import CompressedNetwork
from worker.quant.rebias import biases_of, matched, rebiased
from worker.quant.reference import fitting


def loss_behind(subject: Subject, network: CompressedNetwork, batches: Sequence[Sequence[Tensor]]) -> float:
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


class BiasStage:
    """Bias correction as a stage of a search, in one epoch (see `worker.methods.protocol.Stage`)."""

    def __init__(self, subject: Subject, method: domain.BiasCorrection) -> None:
        self._subject, self._method = subject, method
        self._rows = subject.rows.head(method.rows)
        self._made: CompressedNetwork | None = None

    @property
    def done(self) -> bool:
        """Tell whether the biases are corrected."""
        return self._made is not None

    def fit(self) -> Epoch:
        """Correct all biases; the loss is the divergence from the float network behind it. Raises LossNotFinite."""
        started, subject = time.perf_counter(), self._subject
        corrector = BiasCorrector(subject.folded, subject.network)
        size = fitting(subject.folded, max(1, len(self._rows)))
        batches = list(zip(*(item.split(size) for item in self._rows.inputs), strict=True))
        made, note = self._corrected(corrector, batches)
        loss = loss_behind(subject, made, batches)
        self._made = made
        return Epoch(1, 1, loss, time.perf_counter() - started, note)

    def _corrected(
        self, corrector: BiasCorrector, batches: Sequence[Sequence[Tensor]]
    ) -> tuple[CompressedNetwork, str]:
        """Return the corrected network, and of the analytic way which layers needed data, and why."""
        subject, method = self._subject, self._method
        if method.mode == "sequential":
            return matched(subject.network, subject.graph, corrector.wanted(batches[0]), batches[0]), ""
        if method.mode == "local":
            return rebiased(subject.network, subject.graph, corrector.local(batches).biases), ""
        moments = input_moments(subject.folded, self._rows)
        found = corrector.analytic(moments, method.padding_aware, guesses=False)
        measured = corrector.local(batches, found.left).biases if found.left else {}
        note = f"{len(found.biases)} layers from BatchNorms, {len(measured)} from rows"
        why = "; ".join(f"{name}: {reason}" for name, reason in found.left.items())
        biases = {**found.biases, **measured}
        return rebiased(subject.network, subject.graph, biases), f"{note} ({why})" if why else note

    def state(self) -> bytes:
        """Return the corrected biases."""
        return save(biases_of(self.finish(), self._subject.network.layers))

    def restore(self, state: bytes) -> None:
        """Take a state's biases. Raises ValueError for one of another network."""
        net = self._subject.network
        try:
            biases = load(state)
        except Exception as error:
            raise ValueError(f"not a state of bias correction: {error}") from error
        if {name: item.shape for name, item in biases.items()} != {k: v.bias.shape for k, v in net.layers.items()}:
            raise ValueError("a state of another network")
        self._made = rebiased(net, self._subject.graph, {k: v for k, v in biases.items() if "." not in k})

    def finish(self) -> CompressedNetwork:
        """Return the network with its corrected biases, or as it was before `fit`."""
        return self._subject.network if self._made is None else self._made

"""Bias correction as a stage of a search: one epoch, nothing trained (see `worker.methods.bias`)."""

from __future__ import annotations

from safetensors.torch import load, save

from app.domain import methods as domain
from worker.methods.bias import BiasCorrector, input_moments
from worker.methods.protocol import NothingLegal, Subject
from worker.methods.untrained import Batches, UntrainedStage
from worker.quant.network import CompressedNetwork
from worker.quant.rebias import biases_of, matched, rebiased


class BiasStage(UntrainedStage):
    """Bias correction as a stage of a search, in one epoch (see `worker.methods.protocol.Stage`)."""

    def __init__(self, subject: Subject, method: domain.BiasCorrection) -> None:
        """Raises NothingLegal for means that know nothing of the network's gates."""
        if subject.network.gates and method.mode != "sequential":
            raise NothingLegal(
                f"the {method.mode} means are those of the float network, where every filter runs: behind gates use "
                "the mode 'sequential'"
            )
        super().__init__(subject, method.rows)
        self._method = method

    def _make(self, batches: Batches) -> tuple[CompressedNetwork, str]:
        """Return the corrected network, and of the analytic way which layers needed data, and why."""
        subject, method = self._subject, self._method
        corrector = BiasCorrector(subject.folded, subject.network)
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

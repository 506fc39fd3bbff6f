"""Relaxed rounding as a stage of a search: one epoch, layer by layer (see `worker.methods.relaxed_rounding`).

The candidate's channels and bits are compressed once more from the float network, each layer on what the layers before
it make; only how weights below 8 bits are rounded differs. What other methods trained into the candidate is not used.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
from safetensors.torch import load, save
from torch import Tensor

from app.domain import methods as domain
from worker.export.checkpoint import read_checkpoint, write_checkpoint
from worker.methods.protocol import LossNotFinite, Subject
from worker.methods.relaxed import Relaxation
from worker.methods.relaxed_rounding import RoundingPlan, relaxed_rounding
from worker.methods.untrained import Batches, UntrainedStage
from worker.quant.compressor import Compressor
from worker.quant.network import CompressedNetwork
from worker.quant.reference import FloatReference, Sampling

PLACES = 4
"""So many times more places of each layer than a trial looks at, as in the polish."""


class RoundingStage(UntrainedStage):
    """Relaxed rounding as a stage of a search, in one epoch (see `worker.methods.protocol.Stage`)."""

    def __init__(self, subject: Subject, method: domain.RelaxedRounding) -> None:
        super().__init__(subject, method.rows)
        self._method = method

    def _make(self, batches: Batches) -> tuple[CompressedNetwork, str]:
        """Return the network with all layers rounded. Raises LossNotFinite."""
        network, inputs = self._subject.network, self._rows.inputs
        if not all(bool(torch.isfinite(item).all()) for item in inputs):
            raise LossNotFinite("the loss is nan in epoch 1: rows are not finite")
        return self._compressor(inputs).compress(network.assignment, "sequential", network.kept), ""

    def _compressor(self, inputs: Sequence[Tensor]) -> Compressor:
        own, method = self._subject.compressor, self._method
        reference = FloatReference(
            self._subject.folded, own.slicer.plan, inputs, sampling=Sampling(PLACES, method.seed)
        )
        plan = RoundingPlan(method.steps, method.rate, method.seed, Relaxation(kappa=method.noise))
        looking = Compressor(own.slicer, own.graph, reference, own.device, own.fast_pictures)
        return looking.rounding_by(partial(relaxed_rounding, plan=plan))

    def state(self) -> bytes:
        """Return the network that was made, or that there is none yet."""
        content = b"" if self._made is None else write_checkpoint(self._made, {})
        return save({"network": torch.frombuffer(bytearray(content or b"\0"), dtype=torch.uint8)})

    def restore(self, state: bytes) -> None:
        """Take a state's network. Raises ValueError for one of another network."""
        try:
            content = load(state)["network"].numpy().tobytes()
            made = None if content == b"\0" else read_checkpoint(content)[0]
        except Exception as error:
            raise ValueError(f"not a state of relaxed rounding: {error}") from error
        if made is not None and made.assignment != self._subject.network.assignment:
            raise ValueError("not a state of this network: its channels or bits are others")
        self._made = made

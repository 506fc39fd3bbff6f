"""Channel gating as a stage of a search: gates that look at the input, steered to a share of the MACs.

Bejnordi, Blankevoort and Welling 2020 (arXiv 1907.06627). The loss is that of all training, plus gamma times the
batch-shaping loss, plus an augmented Lagrangian on the expected share of the MACs (the L0 term, each filter weighed by
what hangs on it), whose target falls from the whole network to what is asked.
"""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from safetensors.torch import load, save
from torch import Tensor

from app.domain import methods as domain
from worker.methods.gated_hard import tidied
from worker.methods.gated_network import GatedNetwork
from worker.methods.gated_start import begin
from worker.methods.gating import Schedule
from worker.methods.protocol import Epoch, Subject
from worker.methods.training import Rates, Task, Trainer
from worker.quant.network import CompressedNetwork

FIRST = 0.2
"""Before this part of the ramp is gone the share of the MACs is left alone."""
STIFFNESS = 10.0
"""How hard the Lagrangian pulls at a share off its target: kappa, on the logarithm of their ratio."""
PATIENCE = 50
"""In so many batches the multiplier takes over what the stiffness pulls with."""


class GatingStage:
    """Trains gates, then gates and weights (see `worker.methods.protocol.Stage`)."""

    def __init__(self, subject: Subject, method: domain.ChannelGating) -> None:
        self._subject, self._method, how = subject, method, method.training
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(how.seed)
            self._network = GatedNetwork(subject, method.block)
            if method.start == "important":
                begin(self._network, subject, method.macs)
        self._network.register_buffer("multiplier", torch.zeros(()))
        self._schedule = schedule(method)
        self._alone = min(how.epochs, round(method.alone * how.epochs))
        self._settles = how.epochs - round(method.settled * how.epochs)
        self._parts = [self._trainer(0, self._alone), self._trainer(self._alone, how.epochs)]

    def _trainer(self, first: int, end: int) -> Trainer:
        """Return what trains the epochs from `first` to `end`; the weights only behind those of the gates alone."""
        how, task = self._method.training, Task(self._subject.folded, self._subject.rows, self._subject.graph.outputs)
        self._thaw(first >= self._alone)
        # each part draws from seeds of its own
        own = replace(how, epochs=end - first, seed=how.seed + (2**31 if first else 0))

        def penalty(share: float) -> Tensor:
            return self._penalty((first + share * (end - first)) / how.epochs)

        return Trainer(self._network, task, own, penalty, self._rates())

    def _thaw(self, weights: bool) -> None:
        for name, item in self._network.named_parameters():
            item.requires_grad_(weights or name.startswith("gates."))

    def _rates(self) -> Rates:
        rate = self._method.gate_rate / self._method.training.rate
        return (("gates.", rate), ("weights.", 1.0), ("biases.", 1.0), ("", 0.1))

    @property
    def _part(self) -> int:
        return 0 if not self._parts[0].done else 1

    @property
    def done(self) -> bool:
        """Tell whether every epoch is done."""
        return all(part.done for part in self._parts)

    @property
    def _epoch(self) -> int:
        return sum(part.epoch for part in self._parts)

    def fit(self) -> Epoch:
        """Train one epoch. Raises LossNotFinite."""
        self._thaw(self._part == 1)
        self._network.settled = self._epoch >= self._settles
        found = self._parts[self._part].fit()
        return replace(found, number=self._epoch, of=self._method.training.epochs, note=self._note())

    def _note(self) -> str:
        with torch.no_grad():
            return f"{100 * float(self._network.share()):.1f} % of the MACs"

    def _penalty(self, share: float) -> Tensor:
        """Return what batch-shaping and the limit on the MACs add to the loss at a share of all training."""
        gamma, risen = self._schedule.at(share)
        excess = self._network.share().log() - risen * math.log(self._method.macs)
        multiplier = self._network.get_buffer("multiplier")
        loss = multiplier.clone() * excess + 0.5 * STIFFNESS * excess.square() * float(risen > 0)
        if risen > 0:
            multiplier.copy_(multiplier + STIFFNESS / PATIENCE * excess.detach())
        return loss + gamma * self._network.shaping() if gamma > 0 else loss

    def state(self) -> bytes:
        """Return what `restore` needs: both parts' states."""
        parts = {str(index): part.state() for index, part in enumerate(self._parts)}
        return save({name: torch.frombuffer(bytearray(item), dtype=torch.uint8) for name, item in parts.items()})

    def restore(self, state: bytes) -> None:
        """Go on from a state. Raises ValueError for one of another network."""
        try:
            tensors = load(state)
            parts = [tensors[str(index)].numpy().tobytes() for index in range(len(self._parts))]
        except Exception as error:
            raise ValueError(f"not a state of this training: {error}") from error
        for part, item in zip(self._parts, parts, strict=True):
            part.restore(item)

    def finish(self) -> CompressedNetwork:
        """Return the network with its gates as it is stored, at whatever epoch. Raises NothingLegal."""
        return tidied(self._network.hard(), self._subject, self._method)


def schedule(method: domain.ChannelGating) -> Schedule:
    """Return how a method's losses go over training: what begins at its share of the MACs is held there at once."""
    at_once = method.start == "important"
    warm, full = (-1.0, 0.0) if at_once else (FIRST * method.ramp, method.ramp)
    return Schedule(method.gamma, method.shaped, 1.0, warm, full)

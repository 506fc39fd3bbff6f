"""DJPQ as a stage of a search: channels and bits are trained under the budget, fixed inside it, and fine-tuned.

Wang, Lu and Blankevoort 2020 (arXiv 2007.10463). The loss is that of all training, plus gamma times the gates'
divergence, plus an augmented Lagrangian on every limit, whose multipliers grow per epoch.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping
from dataclasses import replace

import torch
from safetensors.torch import load, save
from torch import Tensor

from app.domain import methods as domain
from worker.methods.joint_hard import Start, starts, widest_start
from worker.methods.joint_network import JointNetwork, JointSetting
from worker.methods.protocol import Epoch, Subject
from worker.methods.relaxed_costs import AugmentedLagrangian, RelaxedCosts
from worker.methods.straight import StraightThrough
from worker.methods.trainable import TrainableNetwork
from worker.methods.training import RATES, Part, Rates, Task, Trainer
from worker.quant.network import CompressedNetwork

LOWERED = 0.7
"""The share of the joint part in which limits come down to what is asked. Behind it widths are drawn to legal ones."""
UNTRAINED = 1.1
"""What the loss of a network that the joint part did not train is multiplied by: training goes on at the rate where
that part left off, and what is trained loses less as soon as the rate falls."""
LOOKED_AT = 2048
"""How many calibration rows decide which network is fine-tuned."""
WIDEST = 0.5
"""How far, in log2, a width may lie from the nearest legal one before that: half-way between powers of two."""


class JointStage:
    """Trains channels and bits, then the hard network (see `worker.methods.protocol.Stage`)."""

    def __init__(self, subject: Subject, method: domain.JointPruning) -> None:
        self._subject, self._method = subject, method
        self._task = Task(subject.folded, subject.rows, subject.graph.outputs)
        epochs = method.training.epochs
        first = min(epochs, max(1, round(method.joint * epochs)))
        self._first_part, self._second_part = Part(0, first), Part(first, epochs)
        self._joint = _joint_network(subject, method)
        self._costs = RelaxedCosts(subject.graph, subject.device, subject.space)
        self._rule = AugmentedLagrangian(subject.budget.limits, method.kappa, warm_up=0)
        with torch.no_grad():
            self._above = {name: item.item() for name, item in self._rule.excess(self._limited()).items()}
        how, rates = method.training, _rates(method)
        self._first = Trainer(self._joint, self._task, how, self._penalty, rates, self._first_part)

    @functools.cached_property
    def _second(self) -> Trainer:
        """Fine-tuning. Raises NothingLegal."""
        return self._chosen[1]

    @functools.cached_property
    def _chosen(self) -> tuple[Start, Trainer]:
        """The start with the least loss on calibration rows, and its training. Raises NothingLegal."""
        quantizers, how = StraightThrough(self._subject.powers), self._method.training
        found = [
            (start, Trainer(TrainableNetwork(start.network, quantizers), self._task, how, part=self._second_part))
            for start in starts(self._joint, self._subject)
        ]
        if len(found) == 1:
            return found[0]
        return min(found, key=lambda item: item[1].loss(LOOKED_AT) * (1.0 if item[0].is_trained else UNTRAINED))

    def _penalty(self, whole: float) -> Tensor:
        share = whole * self._method.training.epochs / self._first_part.last
        self._draw_in(share)
        return self._method.gamma * self._joint.kl() + self._at(share).penalty(self._limited())

    def _draw_in(self, share: float) -> None:
        """Narrow, evenly and down to nothing, how far widths may lie from legal ones, once limits have come down: the
        weights then train on the grids that they will be stored on."""
        left = (1 - share) / (1 - LOWERED)
        self._joint.leeway = math.inf if left > 1 else WIDEST * left

    def _at(self, share: float) -> AugmentedLagrangian:
        """Return the rule at a share of the joint part: limits come down from what the start costs, evenly in their
        logarithm, for a network that is far above them would be torn down before its weights could follow."""
        left = max(0.0, 1 - share / LOWERED)
        limits = {
            name: limit * math.exp(left * max(0.0, self._above[name])) for name, limit in self._rule.limits.items()
        }
        return replace(self._rule, limits=limits)

    def _limited(self) -> Mapping[str, Tensor]:
        return self._costs.costs(self._joint.soft(), self._subject.budget.limits)

    @property
    def done(self) -> bool:
        """Tell whether every epoch is done."""
        return self._first.done and (self._second_part.first == self._second_part.last or self._second.done)

    def fit(self) -> Epoch:
        """Train one epoch. Raises LossNotFinite, NothingLegal."""
        if self._first.done:
            return replace(self._second.fit(), note=self._chosen[0].told)
        self._draw_in(self._share)
        found = self._first.fit()
        self._draw_in(self._share)
        self._joint.project()
        with torch.no_grad():
            self._rule = replace(self._at(self._share).after(self._limited()), limits=self._rule.limits)
        return found

    @property
    def _share(self) -> float:
        """How much of the joint part is done."""
        return self._first.epoch / self._first_part.last

    def state(self) -> bytes:
        """Return what `restore` needs: both parts' states and the limits' multipliers."""
        parts = {"first": self._first.state(), "second": self._second.state() if self._second_begun else b""}
        tensors = {name: torch.frombuffer(bytearray(item or b"-"), dtype=torch.uint8) for name, item in parts.items()}
        psi = [self._rule.multipliers.get(name, 0.0) for name in sorted(self._rule.limits)]
        tensors["multipliers"] = torch.tensor(psi, dtype=torch.float64)
        return save({**tensors, "epoch": torch.tensor(self._rule.epoch)})

    @property
    def _second_begun(self) -> bool:
        return self._first.done and "_second" in self.__dict__ and self._second.epoch > 0

    def restore(self, state: bytes) -> None:
        """Go on from a state. Raises ValueError for one of another network."""
        try:
            tensors = load(state)
            first, second = (tensors[name].numpy().tobytes() for name in ("first", "second"))
            psi = dict(zip(sorted(self._rule.limits), tensors["multipliers"].tolist(), strict=True))
            epoch = int(tensors["epoch"])
        except Exception as error:
            raise ValueError(f"not a state of this training: {error}") from error
        self._first.restore(first)
        self._rule = replace(self._rule, epoch=epoch, multipliers=psi)
        if second != b"-":
            self._second.restore(second)

    def finish(self) -> CompressedNetwork:
        """Return the hard network as it is stored, at whatever epoch. Raises NothingLegal."""
        network = self._second.network
        assert isinstance(network, TrainableNetwork)
        return network.hard()


def _rates(method: domain.JointPruning) -> Rates:
    """Return the rates of the joint part: gates' noise and widths have one of their own. Maxima and exponents go as
    slowly as steps do in other training: a coarse grid that jumps about undoes its weights."""
    structure = method.structure_rate / method.training.rate
    return ((".log_variance", structure), (".log_step", structure), (".phi", structure), (".mean", 1.0), *RATES)


def _joint_network(subject: Subject, method: domain.JointPruning) -> JointNetwork:
    start = replace(subject.network, gates={})  # channels are chosen anew: gates of those before go
    if method.start == "float":
        start = subject.compressor.compress(widest_start(subject))
    how = JointSetting(math.log(method.threshold), subject.powers, method.widths == "gates")
    return JointNetwork(start, subject.compressor.slicer.plan, subject.graph, subject.space, how)

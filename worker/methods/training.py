"""The loop that all training shares: batches of calibration rows, distillation from the float network, Adam, epochs.

An epoch draws its order, its pictures' shifts and all noise from its own seed, so a run that went on from a stored
state is the run that was never interrupted.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from safetensors.torch import load, save
from torch import Tensor, fx, nn
from torch.nn import functional as F

from app.domain.graph import Port
from app.domain.methods import Training
from worker.data import RoleData
from worker.methods.protocol import Epoch, LossNotFinite
from worker.search.metrics import is_scores

Rates = tuple[tuple[str, float], ...]
RATES: Rates = (("weights.", 1.0), ("biases.", 1.0), (".threshold.rho", 10.0), ("", 0.1))
"""Rates by a part of the name, the first that fits, as multiples of the weights' rate. Steps are learned in their
logarithm and move by per cents; thresholds go a long way through the logarithms of small numbers."""
LONGEST = 1.0
"""Gradients are cut to this length: the first batches behind a coarse rounding are wild."""

Penalty = Callable[[float], Tensor | None]
"""Called for each batch with the share of training that is done; its value is added to the loss."""


@runtime_checkable
class Scheduled(Protocol):
    """A module inside a network that changes as training goes on."""

    def at(self, share: float) -> None:
        """Be as it is once a share of the training is done; called before each batch."""
        ...


@dataclass(frozen=True)
class Task:
    """What is learned: to answer as `teacher` does on `rows`, and as their labels say; `ports` are the outputs."""

    teacher: fx.GraphModule
    rows: RoleData
    ports: tuple[Port, ...]


@dataclass(frozen=True)
class Part:
    """Which of the epochs of a training one trainer does: from `first` up to `last`, not counting that one. The rate
    falls along the whole training."""

    first: int
    last: int


class Trainer:
    """Trains a network epoch by epoch. Everything but the network itself is in `state`.

    `rates` are multiples of the rate of `how` by a part of a parameter's name: the first that fits counts. `part`: by
    default all epochs.
    """

    def __init__(
        self,
        network: nn.Module,
        task: Task,
        how: Training,
        penalty: Penalty | None = None,
        rates: Rates = RATES,
        part: Part | None = None,
    ) -> None:
        self.network, self._task, self._how, self._penalty = network, task, how, penalty
        self._rates, self._part = rates, Part(0, how.epochs) if part is None else part
        self._rows = task.rows.head(how.rows)
        self._scheduled = [item for item in network.modules() if isinstance(item, Scheduled)]
        self._named = [(name, item) for name, item in network.named_parameters() if item.requires_grad]
        self._optimizer = torch.optim.Adam(self._groups(), lr=how.rate)
        self.epoch = 0

    def _groups(self) -> list[dict[str, Any]]:
        found: dict[float, list[Tensor]] = {}
        for name, item in self._named:
            factor = next(factor for part, factor in self._rates if part in name)
            found.setdefault(factor * self._how.rate, []).append(item)
        return [{"params": items, "lr": rate, "peak": rate} for rate, items in found.items()]

    @property
    def done(self) -> bool:
        """Tell whether every epoch is done."""
        return self._now >= self._part.last

    @property
    def _now(self) -> int:
        """The epochs of the whole training that lie behind."""
        return self._part.first + self.epoch

    @property
    def batches(self) -> int:
        """The steps of an epoch."""
        return max(1, len(self._rows) // self._how.batch)

    def fit(self) -> Epoch:
        """Train one epoch. Raises LossNotFinite."""
        started, total = time.perf_counter(), 0.0
        self.network.train()
        with torch.random.fork_rng(devices=[]), torch.enable_grad():
            torch.manual_seed(self._how.seed * 1000 + self._now)
            for index, chosen in enumerate(self._drawn()):
                total += self._step(chosen, self._now + index / self.batches)
        self.network.eval()
        self.epoch += 1
        return Epoch(self._now, self._how.epochs, total / self.batches, time.perf_counter() - started)

    @torch.no_grad()
    def loss(self, most: int) -> float:
        """Return the mean loss over at most so many of the rows, as they are."""
        self.network.eval()
        rows = torch.arange(min(most, len(self._rows)))
        parts = [(self._loss([item[part] for item in self._rows.inputs], part), len(part)) for part in rows.split(256)]
        return sum(float(loss) * count for loss, count in parts) / len(rows)

    def _drawn(self) -> Iterator[Tensor]:
        """Return each batch's rows; what does not fill the last one is left out (its order differs next time)."""
        order = torch.randperm(len(self._rows))
        return iter(order[: self.batches * self._how.batch].split(self._how.batch))

    def _step(self, chosen: Tensor, at: float) -> float:
        share = at / self._how.epochs
        for group in self._optimizer.param_groups:
            group["lr"] = group["peak"] * 0.5 * (1 + math.cos(math.pi * share))
        for item in self._scheduled:
            item.at(share)
        inputs = shifted([item[chosen] for item in self._rows.inputs], self._how.shift, self._how.mirror)
        loss = self._loss(inputs, chosen)
        extra = None if self._penalty is None else self._penalty(share)
        loss = loss if extra is None else loss + extra
        if not bool(torch.isfinite(loss)):
            raise LossNotFinite(f"the loss is {float(loss.detach())} in epoch {self._now + 1}")
        self._optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_([item for _, item in self._named], LONGEST)
        self._optimizer.step()
        return float(loss.detach())

    def _loss(self, inputs: list[Tensor], chosen: Tensor) -> Tensor:
        with torch.no_grad():
            wanted = several(self._task.teacher(*inputs))
        answers: tuple[Tensor, ...] = self.network(*inputs)
        loss = torch.stack([divergence(*item) for item in zip(answers, wanted, self._task.ports, strict=True)]).sum()
        labels, port = self._rows.labels, self._task.ports[0]
        if labels is None or not self._how.labels or not (is_scores(port) and labels.dim() == 1):
            return loss
        right = F.cross_entropy(answers[0].flatten(1), labels[chosen])
        return (1 - self._how.labels) * loss + self._how.labels * right

    def state(self) -> bytes:
        """Return weights, moments and the epoch."""
        tensors = {f"value.{name}": item.detach() for name, item in self.network.state_dict().items()}
        for name, item in self._named:
            for key, value in self._optimizer.state.get(item, {}).items():
                tensors[f"moment.{key}.{name}"] = torch.as_tensor(value)
        tensors["epoch"] = torch.tensor(self.epoch)
        return save({name: item.contiguous().clone() for name, item in tensors.items()})

    def restore(self, state: bytes) -> None:
        """Take a state's weights, moments and epoch. Raises ValueError for one of another network."""
        try:
            tensors = load(state)
            values = {name.removeprefix("value."): item for name, item in tensors.items() if name.startswith("value.")}
            self.network.load_state_dict(values)
            self.epoch = int(tensors["epoch"])
        except Exception as error:
            raise ValueError(f"not a state of this training: {error}") from error
        for name, item in self._named:
            found = {key: tensors.get(f"moment.{key}.{name}") for key in ("step", "exp_avg", "exp_avg_sq")}
            if all(value is not None for value in found.values()):
                self._optimizer.state[item] = found


def several(outputs: Tensor | tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Return a network's outputs as a tuple, one or several."""
    return outputs if isinstance(outputs, tuple) else (outputs,)


def divergence(answer: Tensor, wanted: Tensor, port: Port) -> Tensor:
    """Return the mean divergence in nats of an output from what it should be: of distributions over classes, of normal
    distributions around anything else (as `worker.search.metrics` measures it)."""
    if is_scores(port):
        axis = port.axis
        logs, wished = answer.log_softmax(axis), wanted.log_softmax(axis)
        return (wished.exp() * (wished - logs)).sum(axis).mean()
    return 0.5 * (answer - wanted).square().mean() / wanted.var().clamp_min(1e-12)


def shifted(inputs: list[Tensor], pixels: int, mirror: bool) -> list[Tensor]:
    """Return a batch's pictures [rows, channels, h, w] moved by up to `pixels`, and half the batches mirrored.

    One draw goes for the batch. What is no picture of at least four times that extent stays as it is.
    """
    across, down = (int(item) for item in torch.randint(-pixels, pixels + 1, (2,)))
    turned = mirror and bool(torch.rand(()) < 0.5)
    return [_moved(item, across, down, turned) if _is_picture(item, pixels) else item for item in inputs]


def _is_picture(item: Tensor, pixels: int) -> bool:
    return item.dim() == 4 and min(item.shape[2:]) >= 4 * pixels and item.is_floating_point()


def _moved(item: Tensor, across: int, down: int, turned: bool) -> Tensor:
    edge = max(abs(across), abs(down))
    height, width = item.shape[2:]
    padded = F.pad(item, (edge,) * 4, mode="replicate")
    found = padded[:, :, edge + down : edge + down + height, edge + across : edge + across + width]
    return found.flip(3) if turned else found

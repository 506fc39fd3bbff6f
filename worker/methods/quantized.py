"""Training a candidate's weights and steps through quantizers; channels and bits stay, and so do all costs."""

from __future__ import annotations

from app.domain import methods as domain
from worker.methods.protocol import Epoch, Subject
from worker.methods.relaxed import Fading, Relaxation, RelaxedQuantization
from worker.methods.straight import StraightThrough
from worker.methods.trainable import Quantizers, TrainableNetwork
from worker.methods.training import Penalty, Task, Trainer
from worker.quant.network import CompressedNetwork


class QuantizedStage:
    """Trains the network of a subject with some quantizers (see `worker.methods.protocol.Stage`)."""

    def __init__(
        self, subject: Subject, quantizers: Quantizers, how: domain.Training, penalty: Penalty | None = None
    ) -> None:
        self._network, self._epochs = TrainableNetwork(subject.network, quantizers), how.epochs
        task = Task(subject.folded, subject.rows, subject.graph.outputs)
        self._trainer = Trainer(self._network, task, how, penalty)

    @property
    def done(self) -> bool:
        """Tell whether every epoch is done."""
        return self._trainer.done

    def fit(self) -> Epoch:
        """Train one epoch. Raises LossNotFinite."""
        return self._trainer.fit()

    def state(self) -> bytes:
        """Return what `restore` needs."""
        return self._trainer.state()

    def restore(self, state: bytes) -> None:
        """Go on from a state. Raises ValueError for one of another network."""
        self._trainer.restore(state)

    def finish(self) -> CompressedNetwork:
        """Return the network as it is stored."""
        return self._network.hard()


def relaxed(subject: Subject, method: domain.RelaxedQuantization) -> QuantizedStage:
    """Return the stage of relaxed quantization."""
    how = Relaxation(
        temperature=method.temperature,
        kappa=method.noise,
        straight_through=method.straight,
        powers=subject.powers,
    )
    return QuantizedStage(subject, RelaxedQuantization(how, Fading(method.settled)), method.training)


def straight_through(subject: Subject, method: domain.StraightThrough) -> QuantizedStage:
    """Return the stage of straight-through training."""
    return QuantizedStage(subject, StraightThrough(subject.powers), method.training)

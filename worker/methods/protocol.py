"""What every method is to the search: prepared on a network, fitted epoch by epoch, finished as a stored network."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from torch import fx

from app.domain.budget import Budget
from app.domain.device import DeviceProfile
from app.domain.graph import ModelGraph
from app.domain.space import SearchSpace
from worker.data import RoleData
from worker.quant.compressor import Compressor
from worker.quant.grids import GridRules
from worker.quant.network import CompressedNetwork


class LossNotFinite(ArithmeticError):
    """Training came to a loss that is NaN or infinite."""


class NothingLegal(ArithmeticError):
    """No legal assignment inside the budget was found near what training came to."""


@dataclass(frozen=True)
class Subject:
    """What a method works on: a candidate's network, the float network it comes from, and rows to fit on.

    `rows` are calibration rows: neither those that decide nor the hold-out are among them. `compressor` makes networks
    of other assignments in `space`.
    """

    network: CompressedNetwork
    folded: fx.GraphModule
    graph: ModelGraph
    device: DeviceProfile
    budget: Budget
    rows: RoleData
    compressor: Compressor
    space: SearchSpace

    @property
    def powers(self) -> bool:
        """Tell whether the device wants powers of two for scales."""
        return GridRules.of(self.device).powers


@dataclass(frozen=True)
class Epoch:
    """What one epoch came to: its number from 1 on, of how many, the mean loss, seconds, and a remark."""

    number: int
    of: int
    loss: float
    seconds: float
    note: str = ""


class Stage(Protocol):
    """A method at work on one subject. Between epochs its `state` is all there is to it."""

    @property
    def done(self) -> bool:
        """Tell whether every epoch is done."""
        ...

    def fit(self) -> Epoch:
        """Go through the rows once. Raises LossNotFinite, NothingLegal."""
        ...

    def state(self) -> bytes:
        """Return what `restore` needs to go on from here, in safetensors' format."""
        ...

    def restore(self, state: bytes) -> None:
        """Go on from a state of this stage. Raises ValueError for one that is not."""
        ...

    def finish(self) -> CompressedNetwork:
        """Return the network as it is stored; its assignment is its own. Raises NothingLegal."""
        ...

"""Bias correction (US 11604987 B2; Nagel et al. 2019, Data-Free Quantization Through Weight Equalization and Bias
Correction, section 4.2): what replaced weights add to a layer's mean outputs is taken out of its bias.

Whatever was done to the weights: they are compared as they are, rounded, fewer or refitted. Three ways to the means:
- "analytic": from the BatchNorms' shifts and scales, without data (`worker.methods.propagation`). Layers whose inputs'
  means can't be followed, or rest on a guessed variance, are corrected as "local" does where there are rows;
- "local": both weights see the float network's inputs: the mean over the rows of (W~ - W) * x;
- "sequential": layer by layer in execution order, each on what the corrected layers before it make, so that their
  drift is taken back as well.
Each replaces a layer's bias rather than adding to it, so that nothing is corrected twice.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, fx, nn

from worker.data import RoleData
from worker.graph.extents import inputs_of, shapes_of
from worker.graph.groups import channel_plan
from worker.graph.operands import operands
from worker.graph.ops.parametric import WEIGHTED, rows_first
from worker.graph.slicing import Slicer
from worker.methods.expectation import mean_response, tap_shares
from worker.methods.propagation import propagate
from worker.methods.statistics import Moments
from worker.quant.network import CompressedNetwork
from worker.quant.rebias import layer_means, mean_output
from worker.quant.walk import run


@dataclass(frozen=True)
class Corrections:
    """Corrected biases by layer [kept out], and for the other layers why they have none."""

    biases: Mapping[str, Tensor]
    left: Mapping[str, str] = field(default_factory=dict)


class BiasCorrector:
    """Corrects the biases of a network against the float network it comes from. Rows are asked for by the caller."""

    def __init__(self, folded: fx.GraphModule, net: CompressedNetwork) -> None:
        self.folded, self.net = folded, net
        slicer = Slicer(folded, channel_plan(folded))
        self._nodes = {node.name: node for node in folded.graph.nodes if node.name in net.layers}
        self._index = {name: slicer.columns(name, net.kept) for name in self.layers}

    @property
    def layers(self) -> tuple[str, ...]:
        """Return the layers whose biases can be corrected, in execution order."""
        return tuple(name for name in self._nodes if isinstance(self.folded.get_submodule(name), WEIGHTED))

    def analytic(
        self, inputs: Mapping[str, Moments] | None = None, padding_aware: bool = True, guesses: bool = True
    ) -> Corrections:
        """Correct without data. `inputs` are the network inputs' moments where they are known.

        `guesses`: means that rest on a guessed variance will do.
        """
        shapes, found = shapes_of(self.folded, 1), propagate(self.folded, inputs, padding_aware)
        biases, left = {}, {}
        for name in self.layers:
            (source,) = operands(self._nodes[name])
            moments, shape = found.moments.get(source.name), shapes[source.name]
            if isinstance(self.folded.get_submodule(name), nn.Linear) and len(shape) != 2:
                left[name] = "a linear layer over tokens"
            elif moments is None:
                left[name] = found.unknown.get(source.name, f"the mean of {source.name} is not known")
            elif moments.estimated and not guesses:
                left[name] = f"the variance ahead of {source.name} is a guess"
            else:
                biases[name] = self._expected(name, moments.mean, shape[2:], padding_aware)
        return Corrections(biases, left)

    def _expected(self, name: str, means: Tensor, sizes: Sequence[int], padding_aware: bool) -> Tensor:
        """Return the float bias less the expected error of a layer's weight, columns that were removed included."""
        old, new = self.folded.get_submodule(name), self.net.module.get_submodule(name)
        (rows, columns), shares = self._index[name], tap_shares(old, sizes, padding_aware)
        wanted = mean_response(rows_first(old), means, getattr(old, "groups", 1), shares)[rows]
        found = mean_response(rows_first(new), means[columns], getattr(new, "groups", 1), shares)
        return _bias(old)[rows].double() + (wanted - found)

    def local(self, batches: Sequence[Sequence[Tensor]], layers: Collection[str] | None = None) -> Corrections:
        """Correct layers (None: all) by their mean errors on the float network's own values. `batches` of inputs."""
        chosen = set(self.layers if layers is None else layers)
        totals = {name: torch.zeros(len(self._index[name][0]), dtype=torch.float64) for name in chosen}
        counts = dict.fromkeys(chosen, 0)

        def before(node: fx.Node, source: Tensor) -> None:
            if node.name in chosen:
                error, places = self._error(node.name, source)
                totals[node.name] += error * places
                counts[node.name] += places

        for batch in batches:
            run(self.folded, *batch, before=before)
        biases = {}
        for name in chosen:
            bias = _bias(self.folded.get_submodule(name))[self._index[name][0]]
            biases[name] = bias.double() - totals[name] / max(1, counts[name])
        return Corrections(biases)

    def _error(self, name: str, source: Tensor) -> tuple[Tensor, int]:
        """Return the mean of (W~ - W) * x per output channel, and how many rows that are."""
        old, new = self.folded.get_submodule(name), self.net.module.get_submodule(name)
        rows, columns = self._index[name]
        axis = -1 if isinstance(old, nn.Linear) else 1
        wanted = mean_output(old, old(source))[rows].double() - _bias(old)[rows].double()
        found = mean_output(new, new(source.index_select(axis, columns))).double() - _bias(new).double()
        return found - wanted, source.shape[0]

    def wanted(self, inputs: Sequence[Tensor]) -> dict[str, Tensor]:
        """Return the float network's mean outputs [kept out] on rows, as "sequential" needs them."""
        found = layer_means(self.folded, self.layers, inputs)
        return {name: mean[self._index[name][0]] for name, mean in found.items()}


def _bias(leaf: nn.Module) -> Tensor:
    found = leaf.bias
    assert isinstance(found, Tensor)
    return found.detach()


def input_moments(module: fx.GraphModule, rows: RoleData) -> dict[str, Moments]:
    """Return the measured moments per channel of a network's inputs; how neighbours hang together they don't say."""
    found = {}
    for spec, value in zip(inputs_of(module), rows.inputs, strict=True):
        if value.is_floating_point() and value.dim() > 1:
            flat = value.movedim(1, 0).flatten(1).double()
            found[spec.name] = Moments(flat.mean(1), flat.var(1, correction=0), assumed=True)
    return found

"""Evaluating assignments: compress, run, compare with the float network."""

from __future__ import annotations

import math
import time
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import cast

import torch
from torch import Tensor, fx

from app.domain.candidate import Fidelity, Measurement
from app.domain.device import DeviceProfile
from app.domain.graph import ModelGraph
from app.domain.space import FLOAT_BITS, Assignment, widest
from app.domain.zip_laws import Buffer
from worker.data import Role, RoleData
from worker.graph.batches import check_batch
from worker.graph.extents import inputs_of, shapes_of
from worker.graph.groups import channel_plan
from worker.graph.picture import draw
from worker.graph.read import named_refusals, read_network
from worker.graph.rewrite import fold_batchnorm
from worker.graph.slicing import Slicer
from worker.quant.absorb import absorbed
from worker.quant.compressor import FAST_PICTURES, Compressor, Repair
from worker.quant.equalise import equalised
from worker.quant.layer import is_float
from worker.quant.network import CompressedNetwork
from worker.quant.polish import Polisher
from worker.quant.reference import FloatReference
from worker.quant.steps import Polished, parted, polish
from worker.quant.trunk import Trunk
from worker.quant.walk import Value, live_bytes, moved, run
from worker.search.metrics import Outputs, check_baseline, joined, measure

BATCH = 512
BATCH_BYTES = 1 << 22
FEW = 8
FEW_BYTES = 1 << 27
TRUNK_BYTES = 2 << 30
CACHED_NETWORKS = 8


@dataclass(frozen=True)
class EvaluatorOptions:
    """How many pictures each stage looks at."""

    calibration: int = 512
    screen: int = 256
    full: int = 2048
    holdout: int = 100_000
    fast: int = FAST_PICTURES
    thorough: int = 4096


class Evaluator:
    """Measures assignments of one network on one dataset; results depend on the arguments alone, not on their order.

    Networks are compressed on the CPU and run on `runs_on`. What they compute there is the integers' arithmetic; only
    another processor's convolutions may sum in another order (see `processor`).
    """

    def __init__(
        self,
        folded: fx.GraphModule,
        graph: ModelGraph,
        compressor: Compressor,
        data: Mapping[Role, RoleData],
        options: EvaluatorOptions,
        runs_on: torch.device | None = None,
    ) -> None:
        self.runs_on = torch.device("cpu") if runs_on is None else runs_on
        self.is_equalised = self.is_absorbed = False
        self.folded = self.original = folded
        self.graph = graph
        self.compressor = compressor
        self._sets: dict[Fidelity, RoleData] = {
            "screen": data["evaluation"].head(options.screen),
            "full": data["evaluation"].head(options.full),
            "holdout": data["holdout"].head(options.holdout),
        }
        self._polisher = Polisher(compressor, folded, data["calibration"].head(options.thorough).inputs)
        self._float: dict[Fidelity, Outputs] = {}
        self.rows = data["calibration"]
        self._networks: OrderedDict[tuple[str, str], CompressedNetwork] = OrderedDict()
        self._adopted: dict[str, CompressedNetwork] = {}
        self._trunk: tuple[tuple[str, Fidelity, str], Trunk] | None = None
        self._inputs: tuple[object, Sequence[tuple[Value, ...]]] | None = None
        shapes = shapes_of(folded)
        self._batch = batch_size(shapes)
        self._live_bytes = live_bytes(folded, shapes)

    @property
    def conditioned(self) -> dict[str, bool]:
        """Return what was done to the float network before the search, as a record says it."""
        return {
            **({"equalised": True} if self.is_equalised else {}),
            **({"absorbed": True} if self.is_absorbed else {}),
        }

    def baseline(self, fidelity: Fidelity = "full") -> Measurement:
        """Measure the float network."""
        return self.evaluate(widest(self.graph, 32), fidelity)

    def evaluate(
        self,
        assignment: Assignment,
        fidelity: Fidelity = "full",
        repair: str = "sequential",
        base: Assignment | None = None,
    ) -> Measurement:
        """Measure one assignment: `kl` to the float outputs, and what else `worker.search.metrics` names.

        With a `base` what the assignment has in common with it is computed once and kept for the next call (the result
        is the same): for probes of one reference, asked in the order of the layers. Raises ArithmeticError where
        outputs are not finite, or the float network's are all the same.
        """
        start = time.perf_counter()
        pictures = self._sets[fidelity]
        wanted = self.float_outputs(fidelity)
        if self.is_baseline(assignment) and not self.knows(repair):
            check_baseline(wanted)
            outputs = wanted
        elif base is not None and "+" not in repair and self._can_branch(fidelity, repair):
            outputs = joined(self._trunk_of(base, fidelity, repair).outputs(assignment))
        else:
            outputs = self.outputs(self.compress(assignment, repair), fidelity)
        metrics = measure(outputs, wanted, self.graph.outputs, pictures.labels)
        return Measurement(metrics, fidelity, len(pictures), time.perf_counter() - start)

    def compress(self, assignment: Assignment, repair: str = "sequential") -> CompressedNetwork:
        """Return the compressed network of an assignment (the last few are kept)."""
        if repair in self._adopted:
            return self._adopted[repair]
        key = (assignment.digest, repair)
        if key not in self._networks:
            self._networks[key] = self._compressed(assignment, repair)
            if len(self._networks) > CACHED_NETWORKS:
                self._networks.popitem(last=False)
        return self._networks[key]

    def knows(self, repair: str) -> bool:
        """Tell whether a repair names an adopted network."""
        return repair in self._adopted

    def adopt(self, repair: str, network: CompressedNetwork) -> None:
        """Take in a network that was made elsewhere, by training say: `repair` names it from now on."""
        self._adopted[repair] = network

    def _compressed(self, assignment: Assignment, repair: str) -> CompressedNetwork:
        own, steps = parted(repair)
        network = self.compressor.compress(assignment, cast(Repair, own))
        return self._polisher.network(assignment, network, steps) if steps else network

    def pruned(self, assignment: Assignment, repair: str = "sequential") -> fx.GraphModule:
        """Return the float network with an assignment's channels alone, repaired likewise, and nothing rounded.

        Of an adopted network that is its own, with the weights as they are stored and nothing else rounded.
        """
        if repair in self._adopted:
            return self._adopted[repair].module
        bits = (dict.fromkeys(held, FLOAT_BITS) for held in (assignment.weight_bits, assignment.activation_bits))
        whole = Assignment(assignment.keep, *bits)
        return self.folded if self.is_baseline(whole) else self.compress(whole, repair).module

    def polish(self, assignment: Assignment, repair: str = "sequential") -> Polished:
        """Try the steps of the polish on an assignment's network; the evaluation pictures say which are kept.

        `compress` and `evaluate` take the `repair` that comes back, in this evaluator or another one on the same data.
        """
        return polish(repair, lambda name: self.evaluate(assignment, "full", name).metrics["kl"])

    def outputs(self, network: CompressedNetwork, fidelity: Fidelity) -> Outputs:
        """Return the simulation's outputs [rows, ...] on a fidelity's rows."""
        there = network.on(self.runs_on)
        return tuple(item.cpu() for item in joined(there.forward(*inputs) for inputs in self._encoded(there, fidelity)))

    def _encoded(self, network: CompressedNetwork, fidelity: Fidelity) -> Iterable[tuple[Value, ...]]:
        """Return a fidelity's batches on the grids of a network's inputs, which seldom change (the last are kept)."""
        if fidelity == "holdout":  # looked at a few times, and too many rows to keep twice
            return (network.encoded(*inputs) for inputs in self._batches(fidelity))
        names = [node.name for node in inputs_of(network.module)]
        key = (fidelity, *(network.grids.get(name) for name in names))
        if self._inputs is None or self._inputs[0] != key:
            self._inputs = key, [network.encoded(*inputs) for inputs in self._batches(fidelity)]
        return self._inputs[1]

    def float_outputs(self, fidelity: Fidelity) -> Outputs:
        """Return the outputs on a fidelity's rows of the float network as it was given (computed once)."""
        if fidelity not in self._float:
            folded = moved(self.original, self.runs_on)
            outputs = joined(run(folded, *inputs) for inputs in self._batches(fidelity))
            self._float[fidelity] = tuple(item.cpu() for item in outputs)
        return self._float[fidelity]

    def _batches(self, fidelity: Fidelity) -> Iterator[tuple[Tensor, ...]]:
        for inputs in self._sets[fidelity].batches(self._batch):
            yield tuple(item.to(self.runs_on) for item in inputs)

    def pictures(self, fidelity: Fidelity) -> RoleData:
        """Return the pictures a fidelity looks at."""
        return self._sets[fidelity]

    def _can_branch(self, fidelity: Fidelity, repair: str) -> bool:
        """Tell whether probes can branch off a trunk: it runs on the CPU and keeps its values within a memory share."""
        pictures = len(self._sets[fidelity]) + len(self.compressor.looked_at(cast(Repair, repair))[0])
        return self.runs_on.type == "cpu" and self._live_bytes * pictures <= TRUNK_BYTES

    def _trunk_of(self, base: Assignment, fidelity: Fidelity, repair: str) -> Trunk:
        key = (base.digest, fidelity, repair)
        if self._trunk is None or self._trunk[0] != key:
            batches = list(self._sets[fidelity].batches(self._batch))
            self._trunk = key, Trunk(self.compressor, base, cast(Repair, repair), batches)
        return self._trunk[1]

    def is_baseline(self, assignment: Assignment) -> bool:
        """Tell whether an assignment is the float network itself."""
        bits = [*assignment.weight_bits.values(), *assignment.activation_bits.values()]
        whole = all(assignment.keep[group.id] == group.channels for group in self.graph.groups)
        return whole and all(is_float(width) for width in bits)


def batch_size(shapes: Mapping[str, tuple[int, ...]]) -> int:
    """Return how many pictures run at once, given the shapes of one: as many as keep the largest activation within the
    processor's caches, yet `FEW` where memory allows: each step of a batch has its price too."""
    largest = max(4 * math.prod(shape) for shape in shapes.values())
    cached, possible = BATCH_BYTES // largest, FEW_BYTES // largest
    return max(1, min(BATCH, max(cached, min(FEW, possible))))


def processor() -> torch.device:
    """Return where trials run: on a CUDA device where there is one, else on the CPU.

    A CUDA device multiplies float32 in full: codes are summed without loss below 2^24, but for convolutions that its
    library computes by transforms, where a code is now and then off by one. Exports are always verified on the CPU.
    """
    if not torch.cuda.is_available():
        return torch.device("cpu")
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    return torch.device("cuda")


@dataclass(frozen=True)
class Opened:
    """A network ready for compression: folded graph, picture and slicer."""

    folded: fx.GraphModule
    graph: ModelGraph
    slicer: Slicer


def open_network(data: Buffer, format: str | None = None, weights: Buffer | None = None) -> Opened:
    """Read a network's bytes into a folded graph, its picture and its slicer. Raises NetworkRefused.

    `weights`, a safetensors file, takes the place of the network's own.
    """
    module = read_network(data, format, weights)
    with named_refusals():
        check_batch(module)
        folded = fold_batchnorm(module)
        _channels_last(folded)
        plan = channel_plan(folded)
        return Opened(folded, draw(folded, plan), Slicer(folded, plan))


def _channels_last(module: fx.GraphModule) -> None:
    """Lay convolution weights out as the CPU kernels like them best."""
    for parameter in module.parameters():
        if parameter.dim() == 4:
            parameter.data = parameter.data.contiguous(memory_format=torch.channels_last)


def open_evaluator(
    network: Opened,
    data: Mapping[Role, RoleData],
    device: DeviceProfile,
    options: EvaluatorOptions = EvaluatorOptions(),
    runs_on: torch.device | None = None,
) -> Evaluator:
    """Return an evaluator: runs the float network once over the calibration pictures.

    Trials run on `runs_on`, by default on what `processor` finds. Where the device has one weight scale per tensor, the
    network's layers are equalised, and high biases absorbed, each if evaluation pictures then say better of 8 bits
    everywhere.
    """
    runs_on = processor() if runs_on is None else runs_on
    found = evaluator_of(network, data, device, options, runs_on)
    if all(layer.kind in device.per_channel_weights for layer in network.graph.layers):
        return found
    variants = list(_variants(network.folded))
    losses = [_loss_at_8_bits(found)] if variants else []
    for folded, steps in variants:
        changed = replace(network, folded=folded, slicer=Slicer(folded, network.slicer.plan))
        other = evaluator_of(changed, data, device, options, runs_on)
        other.original = network.folded
        other.is_equalised, other.is_absorbed = "equalised" in steps, "absorbed" in steps
        losses.append(_loss_at_8_bits(other))
        found = other if losses[-1] < min(losses[:-1]) else found
    return found


def _variants(folded: fx.GraphModule) -> Iterator[tuple[fx.GraphModule, tuple[str, ...]]]:
    """Return the network with its layers equalised, and then with high biases absorbed, where either changes it."""
    scaled = equalised(folded)
    if scaled is not None:
        yield scaled, ("equalised",)
    lower = absorbed(folded if scaled is None else scaled)
    if lower is not None:
        yield lower, ("absorbed",) if scaled is None else ("equalised", "absorbed")


def evaluator_of(
    network: Opened,
    data: Mapping[Role, RoleData],
    device: DeviceProfile,
    options: EvaluatorOptions,
    runs_on: torch.device,
) -> Evaluator:
    """Return an evaluator of the network as it is, whatever the device."""
    inputs = data["calibration"].head(options.calibration).inputs
    reference = FloatReference(network.folded, network.slicer.plan, inputs)
    compressor = Compressor(network.slicer, network.graph, reference, device, options.fast)
    return Evaluator(network.folded, network.graph, compressor, data, options, runs_on)


def _loss_at_8_bits(evaluator: Evaluator) -> float:
    """Return the loss of 8 bits everywhere on evaluation pictures (nothing is fitted on them); infinite for none."""
    try:
        return evaluator.evaluate(widest(evaluator.graph, 8), "screen", "fast").metrics["kl"]
    except ArithmeticError:
        return math.inf

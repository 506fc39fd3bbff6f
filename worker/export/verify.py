"""Verification: the files that will be handed out are run, compared with the simulation and counted again.

An artefact is `verified` only when every check below passes; whatever goes wrong while checking is a failure with a
name, never a crash of the search that asked.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import torch
from torch import fx

from app.domain.budget import Budget, BudgetRow, counted_evidence, table, with_measured
from app.domain.cost import METRICS, count
from app.domain.demand import is_host
from app.domain.device import DeviceProfile, Evidence
from app.domain.graph import ModelGraph
from app.domain.lifecycle import Verification
from app.domain.metrics import labelled
from app.domain.space import multiple_violations
from worker.data import RoleData
from worker.export.agreement import Agreement, Array, accuracy, agreement
from worker.export.audit import differences, fused_ops, opset_of, oversized, site_sqnr
from worker.export.checkpoint import read_checkpoint
from worker.export.encodings import unsound
from worker.export.grid_rules import rule_violations
from worker.export.onnx_qdq import QdqWriter
from worker.export.pruned import PrunedFiles
from worker.export.recount import Recount, needless, recount
from worker.export.saturation import guards_pairs
from worker.export.second_opinion import Opinion, second_opinion
from worker.graph.read import read_network
from worker.hardware import host
from worker.hardware.measure import Latency, fed, measure, open_session
from worker.methods.gated_costs import GatedCosts, spreads
from worker.quant.network import CompressedNetwork
from worker.quant.walk import run
from worker.search.metrics import is_scores, joined, labels_of

Outputs = tuple[Array, ...]

MIN_AGREEMENT = 0.995
MAX_ACCURACY_GAP = 0.005
MIN_SQNR_DB = 20.0
CHECKPOINT_TOLERANCE = 1e-5
PRUNED_TOLERANCE = 1e-4
"""Of the largest output: what float32 sums in another order may come to in a deep network."""
BATCH = 128
DIAGNOSED = 64
DIAGNOSED_BYTES = 128 << 20
RELOADED = 256


@dataclass(frozen=True)
class Subject:
    """What an export is checked against: the simulation, its picture, the pictures, device and budget."""

    network: CompressedNetwork
    graph: ModelGraph
    evaluation: RoleData
    device: DeviceProfile
    budget: Budget
    measured: Mapping[str, Any] | None = None  #: what a measured latency limit came to before the export
    pruned: fx.GraphModule | None = None  #: what the pruned float files are compared with


@dataclass(frozen=True)
class Files:
    """The bytes under test, and the float network as ONNX to time against."""

    onnx: bytes
    checkpoint: bytes
    float_onnx: bytes
    pruned: PrunedFiles | None = None
    skipping: bytes | None = None  #: the ONNX file for one row that leaves out what gates turn off


@dataclass
class VerificationReport:
    """What was found. `failures` is empty exactly when `state` is verified; entries are {"code", "detail"}.

    `outputs` holds the agreement of each output, `agreement` that of the output that follows the simulation least.
    `costs` holds every metric: macs, bops and weight_bytes counted from the checkpoint's tensors, the rest modelled;
    `pruned` is, by kind of file, the agreement of the output that follows the pruned float network least; `latency`
    what this machine measured (milliseconds, one thread), with `ratio` = float time / compressed time; `second` what
    another runtime makes of the ONNX file, where one is installed; `gating` what gates leave of the MACs
    over evaluation rows; `skipping` the agreement with the ONNX file of one that leaves out what gates turn off.
    """

    failures: list[dict[str, str]] = field(default_factory=list)
    accuracy_simulated: float | None = None
    accuracy_onnx: float | None = None
    agreement: Agreement | None = None
    outputs: dict[str, Agreement] = field(default_factory=dict)
    checkpoint: Agreement | None = None
    pruned: dict[str, Agreement] = field(default_factory=dict)
    site_sqnr_db: dict[str, float] = field(default_factory=dict)
    recount: Recount | None = None
    costs: dict[str, float] = field(default_factory=dict)
    evidence: dict[str, Evidence] = field(default_factory=dict)
    budget: tuple[BudgetRow, ...] = ()
    latency: dict[str, Latency] = field(default_factory=dict)
    operators: dict[str, int] = field(default_factory=dict)
    opset: int | None = None
    gating: dict[str, float] | None = None
    skipping: Agreement | None = None
    second: Opinion | None = None
    file_bytes: dict[str, int] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    @property
    def state(self) -> Verification:
        """Return verified, or failed where any check failed."""
        return Verification.failed if self.failures else Verification.verified

    @property
    def ratio(self) -> float | None:
        """Return how many times faster than the float file the compressed one ran here (minima of the same rounds)."""
        if not self.latency:
            return None
        return self.latency["float"].min_ms / self.latency["compressed"].min_ms

    def to_json(self) -> dict[str, Any]:
        """Return the report as JSON."""
        return {
            "state": self.state.value,
            "failures": self.failures,
            "accuracy": {"simulated": self.accuracy_simulated, "onnx": self.accuracy_onnx},
            "agreement": self.agreement and self.agreement.to_json(),
            "outputs": {name: item.to_json() for name, item in self.outputs.items()},
            "checkpoint": self.checkpoint and self.checkpoint.to_json(),
            "pruned": {kind: item.to_json() for kind, item in self.pruned.items()},
            "site_sqnr_db": self.site_sqnr_db,
            "costs": self.costs,
            "evidence": dict(self.evidence),
            "budget": [row.to_json() for row in self.budget],
            "layers": [layer.to_json() for layer in self.recount.layers] if self.recount else [],
            "latency": {name: value.to_json() for name, value in self.latency.items()},
            "latency_ratio": self.ratio,
            "operators": self.operators,
            "opset": self.opset,
            "gating": self.gating,
            "skipping": self.skipping and self.skipping.to_json(),
            "second_opinion": self.second and self.second.to_json(),
            "file_bytes": self.file_bytes,
            "host": host.describe(),
            "notes": self.notes,
        }


def verify(subject: Subject, files: Files) -> VerificationReport:
    """Check an export. Never raises for a bad file: it comes out as failed, with the reasons."""
    report = VerificationReport(
        file_bytes={"onnx": len(files.onnx), "checkpoint": len(files.checkpoint), "float_onnx": len(files.float_onnx)}
    )
    simulated = simulate(subject.network, subject.evaluation.inputs)
    pruned = functools.cache(lambda: _run_pruned(subject))
    steps: dict[str, Callable[[], None]] = {
        "onnx-outputs": lambda: _compare_onnx(report, subject, files, simulated),
        "onnx-tensors": lambda: _compare_tensors(report, subject, files),
        "checkpoint": lambda: _compare_checkpoint(report, subject, files, simulated),
        "pruned-onnx": lambda: _compare_pruned_onnx(report, subject, files.pruned, pruned),
        "pruned-pt2": lambda: _compare_pruned_pt2(report, subject, files.pruned, pruned),
        "encodings": lambda: _check_encodings(report, subject, files.pruned),
        "recount": lambda: _count(report, subject, files),
        "gated-onnx": lambda: _compare_skipping(report, subject, files),
        "gates": lambda: _tell_gates(report, subject),
        "latency": lambda: _time(report, subject, files),
    }
    for code, step in steps.items():
        try:
            step()
        except Exception as error:  # onnxruntime's exceptions share no base class; any of them fails the export
            _fail(report, f"{code}-error", f"{type(error).__name__}: {str(error)[:300]}")
    report.second = _second(subject, files, simulated)
    report.notes += report.second.notes if report.second else ()
    _fill_budget(report, subject)
    return report


def _second(subject: Subject, files: Files, simulated: Outputs) -> Opinion | None:
    rows = [item.numpy() for item in subject.evaluation.head(RELOADED).inputs]
    return second_opinion(files.onnx, rows, [item[:RELOADED] for item in simulated], subject.graph.outputs)


def simulate(network: CompressedNetwork, inputs: Sequence[torch.Tensor]) -> Outputs:
    """Return the simulation's outputs, each over all rows."""
    found = joined(network.forward(*batch) for batch in RoleData(tuple(inputs)).batches(BATCH))
    return tuple(item.numpy() for item in found)


def run_onnx(model: bytes, inputs: Sequence[torch.Tensor], rows: int = BATCH) -> Outputs:
    """Return an ONNX file's outputs on normalised inputs, `rows` at once, in the default session a user would open."""
    session = open_session(model)
    batches = RoleData(tuple(inputs)).batches(rows)
    found = [session.run(None, fed(session, [item.numpy() for item in batch])) for batch in batches]
    return tuple(np.concatenate(parts) for parts in zip(*found, strict=True))


def _compare_onnx(report: VerificationReport, subject: Subject, files: Files, simulated: Outputs) -> None:
    """Compare every output; those that score classes must agree in the class, too."""
    outputs, ports = run_onnx(files.onnx, subject.evaluation.inputs), subject.graph.outputs
    for port, one, other in zip(ports, simulated, outputs, strict=True):
        found = agreement(one, other, port.axis)
        report.outputs[port.name] = found
        disagreeing = round((1 - found.top1) * found.decisions)
        if is_scores(port) and disagreeing > max(1.0, (1 - MIN_AGREEMENT) * found.decisions):
            _fail(report, "agreement", f"{port.name}: {disagreeing} of {found.decisions} rows are answered differently")
        if found.sqnr_db < MIN_SQNR_DB:
            detail = f"{port.name} follows the simulation within {found.sqnr_db:.1f} dB, not {MIN_SQNR_DB}"
            _fail(report, "outputs", detail)
    report.agreement = min(report.outputs.values(), key=lambda item: item.sqnr_db)
    labels_ = subject.evaluation.labels
    index = None if labels_ is None else labelled(ports, labels_of(labels_))
    if labels_ is not None and labels_.dim() == 1 and index is not None:
        labels = labels_.numpy()
        pair = (accuracy(simulated[index], labels), accuracy(outputs[index], labels))
        report.accuracy_simulated, report.accuracy_onnx = pair
        gap = abs(report.accuracy_simulated - report.accuracy_onnx)
        if gap > max(MAX_ACCURACY_GAP, 1.01 / len(labels)):
            _fail(report, "accuracy", f"accuracy differs from the simulation's by {gap:.4f}")


def _compare_tensors(report: VerificationReport, subject: Subject, files: Files) -> None:
    for text in differences(files.onnx, subject.network)[:20]:
        _fail(report, "tensors", text)
    for text in oversized(files.onnx, subject.network)[:20]:
        _fail(report, "size", text)
    few = subject.evaluation.head(_diagnosed(subject)).inputs
    report.site_sqnr_db = site_sqnr(files.onnx, subject.network, few)
    report.operators, report.opset = fused_ops(files.onnx), opset_of(files.onnx)


def _diagnosed(subject: Subject) -> int:
    """Return on how many rows every site's values are compared: they are all held at once, from both sides."""
    whole = {group.id: group.channels for group in subject.graph.groups}
    elements = sum(item.positions * item.width.kept(whole) for item in subject.graph.activations)
    return max(1, min(DIAGNOSED, DIAGNOSED_BYTES // (4 * elements)))


def _compare_checkpoint(report: VerificationReport, subject: Subject, files: Files, simulated: Outputs) -> None:
    network, _ = read_checkpoint(files.checkpoint)
    for name, layer in subject.network.layers.items():
        stored = network.layers.get(name)
        if stored is None or not _same_layer(layer, stored):
            _fail(report, "checkpoint", f"{name}: the stored layer differs")
    if dict(network.grids) != dict(subject.network.grids):
        _fail(report, "checkpoint", "the stored activation grids differ")
    outputs = simulate(network, subject.evaluation.head(RELOADED).inputs)
    for port, one, other in zip(subject.graph.outputs, simulated, outputs, strict=True):
        found = agreement(one[: len(other)], other, port.axis)
        if report.checkpoint is None or found.max_error > report.checkpoint.max_error:
            report.checkpoint = found
        if found.max_error > CHECKPOINT_TOLERANCE * max(1.0, float(np.abs(one).max())):
            _fail(report, "checkpoint", f"{port.name} of the reloaded checkpoint differs by {found.max_error:.2e}")


def run_float(module: fx.GraphModule, inputs: Sequence[torch.Tensor]) -> Outputs:
    """Return a float network's outputs, each over all rows."""
    found = joined(run(module, *batch) for batch in RoleData(tuple(inputs)).batches(BATCH))
    return tuple(item.numpy() for item in found)


def _run_pruned(subject: Subject) -> Outputs:
    """Return what the pruned float files must compute."""
    assert subject.pruned is not None, "there are such files of a pruned network alone"
    return run_float(subject.pruned, subject.evaluation.head(RELOADED).inputs)


def _compare_pruned_onnx(
    report: VerificationReport, subject: Subject, files: PrunedFiles | None, wanted: Callable[[], Outputs]
) -> None:
    if files is not None:
        found = run_onnx(files.onnx, subject.evaluation.head(RELOADED).inputs)
        _compare_pruned(report, subject, "pruned-onnx", found, wanted())


def _compare_pruned_pt2(
    report: VerificationReport, subject: Subject, files: PrunedFiles | None, wanted: Callable[[], Outputs]
) -> None:
    if files is None:
        return
    if files.pt2 is None:
        report.notes.append(f"no pruned .pt2: {files.why}")
        return
    module = read_network(files.pt2, "pt2")
    found = run_float(module, subject.evaluation.head(RELOADED).inputs)
    _compare_pruned(report, subject, "pruned-pt2", found, wanted())


def _compare_pruned(report: VerificationReport, subject: Subject, kind: str, outputs: Outputs, wanted: Outputs) -> None:
    """Compare what a pruned float file computes with the pruned float network."""
    for port, one, other in zip(subject.graph.outputs, wanted, outputs, strict=True):
        found = agreement(one, other, port.axis)
        if kind not in report.pruned or found.max_error > report.pruned[kind].max_error:
            report.pruned[kind] = found
        if not found.max_error <= PRUNED_TOLERANCE * float(np.abs(one).max()):
            _fail(report, kind, f"{port.name} differs from the pruned network's by {found.max_error:.2e}")


def _check_encodings(report: VerificationReport, subject: Subject, files: PrunedFiles | None) -> None:
    for text in [] if files is None else unsound(files.encodings, files.onnx, subject.network)[:20]:
        _fail(report, "encodings", text)


def _same_layer(layer: Any, stored: Any) -> bool:
    """Tell whether two quantized layers hold the same bits, integers, scales and biases."""
    pairs = [(layer.weight_int, stored.weight_int), (layer.weight_float, stored.weight_float)]
    pairs += [(layer.weight_scale, stored.weight_scale), (layer.bias, stored.bias)]
    same = all(
        (a is None and b is None) or (a is not None and b is not None and np.array_equal(a, b)) for a, b in pairs
    )
    return bool(layer.bits == stored.bits and same)


def _count(report: VerificationReport, subject: Subject, files: Files) -> None:
    report.recount = recount(files.checkpoint, subject.device)
    modelled = count(subject.graph, subject.network.assignment, subject.device)
    for violation in multiple_violations(subject.graph, subject.network.assignment, subject.device):
        _fail(report, "channel-multiple", violation)
    for violation in rule_violations(subject.network, subject.device):
        _fail(report, "grid-rules", violation)
    own = {"weight_bytes": sum(gate.bytes for gate in subject.network.gates.values())}
    for metric, value in report.recount.totals().items():
        wanted = modelled.value(metric) + own.get(metric, 0)
        if value != wanted:
            _fail(report, "recount", f"{metric}: {value} counted from the tensors, {wanted:.0f} reported")
    for text in needless(report.recount, subject.network):
        _fail(report, "recount", text)


def _tell_gates(report: VerificationReport, subject: Subject) -> None:
    """Say what the gates leave of the MACs over the evaluation rows, and that model.onnx skips nothing of it."""
    if not subject.network.gates:
        return
    dense = GatedCosts.of(subject.graph, subject.network).dense
    tails = spreads(subject.network, subject.graph, subject.evaluation)
    found = tails["macs"]
    report.gating = {"dense": float(dense), **asdict(found)}
    shares = [f"{100 * value / dense:.1f} %" for value in (found.mean, found.p95, found.largest)]
    report.notes.append(
        f"gates leave {shares[0]} of the MACs in the mean, {shares[1]} at the 95th percentile, {shares[2]} at most; "
        "model.onnx computes all of them and puts zeros where a gate is off"
    )
    for metric, spread in tails.items():
        limit = subject.budget.limits.get(metric, math.inf)
        if spread.p95 > limit:
            report.notes.append(
                f"{metric} at the 95th percentile over these rows: {spread.p95:.6g}, beyond {limit:.6g}"
            )


def _compare_skipping(report: VerificationReport, subject: Subject, files: Files) -> None:
    """Run the file that leaves out filters row by row: it must answer as the one that computes all of them."""
    if files.skipping is None:
        return
    few = subject.evaluation.head(RELOADED).inputs
    wanted, found = run_onnx(files.onnx, few), run_onnx(files.skipping, few, 1)
    for port, one, other in zip(subject.graph.outputs, wanted, found, strict=True):
        item = agreement(one, other, port.axis)
        if report.skipping is None or item.sqnr_db < report.skipping.sqnr_db:
            report.skipping = item
        if item.sqnr_db < MIN_SQNR_DB or (is_scores(port) and item.top1 < MIN_AGREEMENT):
            _fail(report, "gated-onnx", f"{port.name} follows the ONNX file within {item.sqnr_db:.1f} dB")


def _time(report: VerificationReport, subject: Subject, files: Files) -> None:
    row = [item.numpy() for item in subject.evaluation.head(1).inputs]
    timed = {"float": files.float_onnx, "compressed": files.onnx}
    if files.skipping is not None:
        timed["skipping"] = files.skipping
    report.latency = measure(timed, row)
    if "skipping" in report.latency:
        one, other = (report.latency[name].min_ms for name in ("skipping", "compressed"))
        report.notes.append(
            f"gated.onnx, which leaves out filters that are off, takes {one:.3f} ms on this machine for the first "
            f"row; model.onnx, which computes all, {other:.3f} ms"
        )
    if report.ratio is not None and report.ratio < 1:
        report.notes.append(_why_slower(report))
    layers = QdqWriter(subject.network).saturating_layers()
    if layers:
        report.notes.append(_told_of_saturation(layers, subject.device))


def _told_of_saturation(layers: Sequence[str], device: DeviceProfile) -> str:
    """Say where the file's 8-bit layers are exact, and at what price."""
    if guards_pairs(device):
        return f"{len(layers)} layers have unsigned 8-bit weights, exact on x86 processors without VNNI but slower"
    return (
        f"not for x86 processors without VNNI, where pairs of 8-bit products saturate in {len(layers)} layers; "
        "for those set rules.saturating_pairs in the device profile"
    )


def _why_slower(report: VerificationReport) -> str:
    """Say that the compressed file is slower than the float one, and what of its kernels is to blame."""
    assert report.ratio is not None
    said = f"slower than the float network on this machine: {report.ratio:.2f} times its speed"
    kernels = sum(report.operators.values())
    turned = sum(report.operators.get(name, 0) for name in ("QuantizeLinear", "DequantizeLinear"))
    if not turned:
        return f"{said} (fixed overheads outweigh what integers save)"
    share = f"{turned} of {kernels} kernels only turn floats into integers or back"
    return f"{said} ({share}, and each kernel costs time whatever its size)"


def _fill_budget(report: VerificationReport, subject: Subject) -> None:
    """Put counted, measured and modelled figures side by side, each with its evidence."""
    modelled = count(subject.graph, subject.network.assignment, subject.device)
    report.costs = {metric: modelled.value(metric) for metric in METRICS}
    report.evidence = counted_evidence(subject.device)
    found: dict[str, float] = {} if report.recount is None else dict(report.recount.totals())
    if subject.measured is not None:
        found["latency_ms"] = subject.measured["value_ms"]
    elif is_host(subject.device.name) and report.latency:
        found["latency_ms"] = report.latency["compressed"].min_ms
    report.costs.update(found)
    report.evidence.update(_measured(found))
    report.budget = with_measured(
        table(subject.budget, report.costs, report.evidence, subject.device), subject.measured
    )


def _measured(metrics: Mapping[str, float]) -> dict[str, Evidence]:
    return dict.fromkeys(metrics, "measured")


def _fail(report: VerificationReport, code: str, detail: str) -> None:
    report.failures.append({"code": code, "detail": detail})

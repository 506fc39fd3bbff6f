"""How far a compressed network's outputs are from the float network's: a loss in nats, and figures to read."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from app.domain.graph import Port

Outputs = tuple[Tensor, ...]
CERTAIN = 1e-3  # how far from 1 a row of probabilities may add up


def joined(batches: Iterable[Tensor | Sequence[Tensor]]) -> Outputs:
    """Return each output of several batches in one tensor [rows, ...]."""
    rows = [batch if isinstance(batch, tuple | list) else (batch,) for batch in batches]
    return tuple(torch.cat(parts) for parts in zip(*rows, strict=True))


def measure(outputs: Outputs, wanted: Outputs, ports: Sequence[Port], labels: Tensor | None) -> dict[str, float]:
    """Return the figures of one assignment.

    `kl`: the divergence of all outputs from the float ones in nats, added up. Of classes, scored by logits or by
    probabilities, that of the distributions (over tokens: per token); of anything else (pictures, volumes, signals,
    single numbers), that of normal distributions around the two answers with the float output's variance, which is half
    the relative squared error. The latter also give `relative_mse` and `cosine` (means over such outputs).
    `agreement`: how often both answers are largest in the same class or channel, a mean over outputs that have at
    least two. `accuracy`: with labels, of the first output that has a class for each. Raises ArithmeticError where an
    output is not finite.
    """
    if not all(bool(torch.isfinite(item).all()) for item in outputs):
        raise ArithmeticError("the network's outputs are not finite")
    triples = list(zip(outputs, wanted, ports, strict=True))
    metrics = {"kl": sum(_divergence(*triple) for triple in triples)}
    likeness = [(relative_mse(*pair), _cosine(*pair)) for *pair, port in triples if not is_scores(port)]
    if likeness:
        metrics["relative_mse"], metrics["cosine"] = (sum(part) / len(part) for part in zip(*likeness, strict=True))
    agreed = [_agreement(got, want, port.axis) for got, want, port in triples if port.columns > 1]
    if agreed:
        metrics["agreement"] = sum(agreed) / len(agreed)
    index = None if labels is None else labelled(ports, int(labels.max()) + 1)
    if index is not None and labels is not None:
        metrics["accuracy"] = float((outputs[index].flatten(1).argmax(1) == labels).float().mean())
    return metrics


def is_scores(port: Port) -> bool:
    """Tell whether an output scores classes: one vector per row, or one per token."""
    tokens = len(port.shape) == 2 and port.axis == 2 and port.columns > 1
    return port.classes is not None or tokens


def labelled(ports: Sequence[Port], classes: int) -> int | None:
    """Return the first output that tells so many classes apart, or None."""
    return next((index for index, port in enumerate(ports) if (port.classes or 0) >= classes), None)


def relative_mse(outputs: Tensor, wanted: Tensor) -> float:
    """Return the squared error over the variance of the wanted values."""
    error = float((outputs.double() - wanted.double()).square().mean())
    return error / max(float(wanted.double().var(correction=0)), 1e-12)


def _divergence(outputs: Tensor, wanted: Tensor, port: Port) -> float:
    if not is_scores(port):
        return relative_mse(outputs, wanted) / 2
    got, want = _rows(outputs, port.axis), _rows(wanted, port.axis)
    if _are_probabilities(want):
        got, want = (item.clamp_min(1e-8).log() for item in (got, want))
    kl = F.kl_div(F.log_softmax(got, 1), F.log_softmax(want, 1), reduction="batchmean", log_target=True)
    return max(0.0, float(kl))


def _rows(values: Tensor, axis: int) -> Tensor:
    return values.movedim(axis, -1).reshape(-1, values.shape[axis])


def _are_probabilities(rows: Tensor) -> bool:
    return bool((rows >= 0).all()) and bool(((rows.sum(1) - 1).abs() < CERTAIN).all())


def _agreement(outputs: Tensor, wanted: Tensor, axis: int) -> float:
    return float((outputs.argmax(axis) == wanted.argmax(axis)).float().mean())


def _cosine(outputs: Tensor, wanted: Tensor) -> float:
    return float(F.cosine_similarity(outputs.flatten(1).double(), wanted.flatten(1).double(), 1, 1e-12).mean())

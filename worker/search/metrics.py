"""How far a compressed network's outputs are from the float network's: a loss in nats, and figures to read."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from app.domain.graph import Port
from app.domain.metrics import IGNORED, TOP, Labels, labelled

Outputs = tuple[Tensor, ...]
CERTAIN = 1e-3  # how far from 1 a row of probabilities may add up


class NotFinite(ArithmeticError):
    """Outputs that are NaN or infinite."""


class Constant(ArithmeticError):
    """Outputs that are the same whatever the network is shown."""


def joined(batches: Iterable[Tensor | Sequence[Tensor]]) -> Outputs:
    """Return each output of several batches in one tensor [rows, ...]."""
    rows = [batch if isinstance(batch, tuple | list) else (batch,) for batch in batches]
    return tuple(torch.cat(parts) for parts in zip(*rows, strict=True))


def measure(outputs: Outputs, wanted: Outputs, ports: Sequence[Port], labels: Tensor | None) -> dict[str, float]:
    """Return the figures of one assignment.

    `kl`: the divergence of all outputs from the float ones in nats, added up. Of classes, scored by logits or by
    probabilities, that of the distributions (over tokens: per token); of anything else (pictures, volumes, signals,
    single numbers), that of normal distributions around the two answers with the float output's variance, which is half
    the relative squared error. The latter also give `relative_mse` (a mean over such outputs). `cosine`: the likeness
    of both answers' directions, a mean over rows and outputs.
    `agreement`: how often both answers are largest in the same class or channel, a mean over outputs that have at
    least two. `mse`: the mean squared error, a mean over outputs. With labels, of the first output that has a class for
    each: `accuracy`, how often the largest score is right; `top5`, how often the right one is among the five largest
    (of more than five classes); `miou`, where every pixel has a label: intersection over union of answer and label, a
    mean over the classes that occur (Everingham et al. 2015, section 4.2). Raises NotFinite where an output is not.
    """
    check_finite(outputs)
    triples = list(zip(outputs, wanted, ports, strict=True))
    metrics = {"kl": sum(_divergence(*triple) for triple in triples)}
    for name, figure in (("mse", _mse), ("cosine", _cosine)):
        metrics[name] = sum(figure(got, want) for got, want, _ in triples) / len(triples)
    errors = [relative_mse(got, want) for got, want, port in triples if not is_scores(port)]
    if errors:
        metrics["relative_mse"] = sum(errors) / len(errors)
    agreed = [_agreement(got, want, port.axis) for got, want, port in triples if port.columns > 1]
    if agreed:
        metrics["agreement"] = sum(agreed) / len(agreed)
    return metrics | _right(outputs, ports, labels)


def labels_of(labels: Tensor | None) -> Labels | None:
    """Return what a tensor of labels [rows] or [rows, h, w] asks of an output."""
    if labels is None:
        return None
    named = labels if labels.dim() == 1 else labels[labels != IGNORED]
    return Labels(tuple(labels.shape[1:]), int(named.max()) + 1 if named.numel() else 1)


def check_finite(outputs: Outputs) -> None:
    """Raise NotFinite where a network's answers are NaN or infinite, saying for how many rows and the first of them."""
    if all(bool(torch.isfinite(item).all()) for item in outputs):
        return
    rows = torch.stack([~torch.isfinite(item).reshape(len(item), -1).all(1) for item in outputs]).any(0)
    first = int(rows.nonzero()[0])
    raise NotFinite(f"outputs are NaN or infinite for {int(rows.sum())} of {len(rows)} rows, first for row {first}")


def check_baseline(outputs: Outputs) -> None:
    """Raise NotFinite or Constant for the float network's outputs where nothing can be compared with them.

    Constant are answers to many rows that are all the same: nothing can be told apart then.
    """
    check_finite(outputs)
    if all(len(item) > 1 and bool((item == item[:1]).all()) for item in outputs):
        raise Constant(f"outputs are the same for all {len(outputs[0])} rows")


def _right(outputs: Outputs, ports: Sequence[Port], labels: Tensor | None) -> dict[str, float]:
    index = labelled(ports, labels_of(labels))
    if index is None or labels is None:
        return {}
    scores = outputs[index]
    if labels.dim() > 1:
        return _pixels(scores.argmax(1), labels, scores.shape[1])
    scores = scores.flatten(1)
    found = {"accuracy": float((scores.argmax(1) == labels).float().mean())}
    if scores.shape[1] > TOP:
        found["top5"] = float((scores.topk(TOP, 1).indices == labels[:, None]).any(1).float().mean())
    return found


def _pixels(answers: Tensor, labels: Tensor, classes: int) -> dict[str, float]:
    """Return accuracy and mean intersection over union of answers [rows, h, w], pixels without a class left out."""
    counted = labels != IGNORED
    if not bool(counted.any()):
        return {}
    wanted, got = labels[counted], answers[counted]
    table = torch.bincount(wanted * classes + got, minlength=classes * classes).reshape(classes, classes).double()
    hits, union = table.diagonal(), table.sum(0) + table.sum(1) - table.diagonal()
    occurs = union > 0
    return {"accuracy": float(hits.sum() / table.sum()), "miou": float((hits[occurs] / union[occurs]).mean())}


def is_scores(port: Port) -> bool:
    """Tell whether an output scores classes: one vector per row, or one per token."""
    tokens = len(port.shape) == 2 and port.axis == 2 and port.columns > 1
    return port.classes is not None or tokens


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


def _mse(outputs: Tensor, wanted: Tensor) -> float:
    return float((outputs.double() - wanted.double()).square().mean())


def _cosine(outputs: Tensor, wanted: Tensor) -> float:
    return float(F.cosine_similarity(outputs.flatten(1).double(), wanted.flatten(1).double(), 1, 1e-12).mean())

"""The figures that say how good an answer is: which there are, which way is better, and which fit a network's data."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from app.domain.graph import Port

MetricName = Literal["accuracy", "top5", "miou", "agreement", "cosine", "mse", "kl"]
METRICS: tuple[str, ...] = get_args(MetricName)
HIGHER_IS_BETTER = frozenset({"accuracy", "top5", "miou", "cosine", "agreement"})
NEED_LABELS = frozenset({"accuracy", "top5", "miou"})
TOP = 5
IGNORED = 255
"""The class of pixels that have none."""


@dataclass(frozen=True)
class Labels:
    """What is known of a dataset's labels: `shape` of one row's, () for one class or (H, W) for one per pixel, and how
    many classes they name."""

    shape: tuple[int, ...]
    classes: int

    @classmethod
    def of(cls, info: Mapping[str, object]) -> Labels | None:
        """Return the labels that a dataset's record tells of, or None where it has none."""
        if not info.get("has_labels"):
            return None
        shape = info.get("label_shape")
        return cls(tuple(shape) if isinstance(shape, list | tuple) else (), int(str(info.get("classes") or 0)))


def default_metric(ports: Sequence[Port], labels: Labels | None) -> str:
    """Return what a search looks at where its request doesn't say: accuracy with labels, fidelity without."""
    return "accuracy" if labelled(ports, labels) is not None else "kl"


def labelled(ports: Sequence[Port], labels: Labels | None) -> int | None:
    """Return the first output that has a class for each label, row by row or pixel by pixel; None where none has."""
    if labels is None:
        return None
    return next((index for index, port in enumerate(ports) if _tells(port, labels)), None)


def misfit(name: str, ports: Sequence[Port], labels: Labels | None) -> str | None:
    """Return why a metric can't be measured on these outputs and labels, or None where it can."""
    if name not in METRICS:
        return f"no metric is called {name!r}; there are {', '.join(METRICS)}"
    if name == "agreement" and all(port.columns < 2 for port in ports):
        return "agreement needs an output with two classes or channels at least; mse and cosine need none"
    if name not in NEED_LABELS:
        return None
    if labels is None:
        return f"{name} needs labels ('y' in the dataset); agreement, cosine, mse and kl need none"
    index = labelled(ports, labels)
    if index is None:
        places = " at each of their pixels" if labels.shape else ""
        return f"{name} needs an output that tells {labels.classes} classes apart{places}; this network has none"
    if name == "miou" and not labels.shape:
        return "miou needs a class for every pixel: labels 'y' of shape [rows, height, width]"
    if name == "top5" and ports[index].columns <= TOP:
        return f"top5 of {ports[index].columns} classes says nothing; more than {TOP} are needed"
    return None


def is_guessing(accuracy: float, classes: int, rows: int) -> bool:
    """Tell whether an accuracy on so many rows is no better than guessing among the classes.

    Guessing is right once in `classes`, by chance up to two standard errors of `rows` tries more often; of few rows no
    more is taken for chance than half the way to perfect answers.
    """
    if classes < 2:
        return False
    chance = 1 / classes
    return accuracy <= min(chance + 2 * math.sqrt(chance * (1 - chance) / rows), (1 + chance) / 2)


def badness(metrics: Mapping[str, float], name: str) -> float:
    """Return how bad figures are by one metric: the less the better, infinite where it was not measured."""
    value = metrics.get(name)
    if value is None:
        return math.inf
    return -value if name in HIGHER_IS_BETTER else value


def _tells(port: Port, labels: Labels) -> bool:
    """Tell whether an output holds a score for every class wherever there is a label."""
    if not labels.shape:
        return (port.classes or 0) >= labels.classes
    return port.axis == 1 and port.shape[1:] == labels.shape and port.columns >= max(2, labels.classes)

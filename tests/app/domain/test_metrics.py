"""Which metrics fit which networks and labels."""

from __future__ import annotations

import pytest

from app.domain.graph import Port
from app.domain.metrics import METRICS, Labels, badness, default_metric, is_guessing, labelled, misfit

ONE = Port("one", (1,))
SCORES, MASK, SIGNAL = Port("y", (10,)), Port("mask", (21, 8, 6)), Port("z", (3, 8, 6))
FEW = Port("few", (4,))


def test_labels_when_read_from_a_record_then_shape_and_classes() -> None:
    assert Labels.of({"has_labels": False, "classes": None}) is None
    assert Labels.of({"has_labels": True, "classes": 10}) == Labels((), 10)
    assert Labels.of({"has_labels": True, "classes": 21, "label_shape": [8, 6]}) == Labels((8, 6), 21)


def test_default_metric_when_labels_fit_an_output_then_accuracy_and_else_fidelity() -> None:
    assert default_metric([SIGNAL, SCORES], Labels((), 10)) == "accuracy"
    assert default_metric([MASK], Labels((8, 6), 21)) == "accuracy"
    assert default_metric([MASK], Labels((), 10)) == "kl"
    assert default_metric([SCORES], None) == "kl"


def test_labelled_when_several_outputs_then_the_first_that_holds_every_class_at_every_label() -> None:
    assert labelled([SIGNAL, FEW, SCORES], Labels((), 10)) == 2
    assert labelled([SIGNAL, MASK], Labels((8, 6), 4)) == 1
    assert labelled([SIGNAL, MASK], Labels((8, 6), 3)) == 0
    assert labelled([MASK], Labels((6, 8), 3)) is None


@pytest.mark.parametrize(
    ("name", "ports", "labels", "words"),
    [
        ("iou", [SCORES], None, "no metric is called 'iou'; there are accuracy, top5"),
        ("accuracy", [SCORES], None, "needs labels"),
        ("agreement", [ONE], None, "needs an output with two classes"),
        ("accuracy", [FEW], Labels((), 10), "tells 10 classes apart; this network has none"),
        ("miou", [SCORES], Labels((8, 6), 4), "at each of their pixels"),
        ("miou", [SCORES], Labels((), 10), "a class for every pixel"),
        ("top5", [FEW], Labels((), 4), "top5 of 4 classes says nothing"),
    ],
)
def test_misfit_when_a_metric_cannot_be_measured_then_says_why(
    name: str, ports: list[Port], labels: Labels | None, words: str
) -> None:
    assert words in str(misfit(name, ports, labels))


def test_misfit_when_a_metric_fits_then_none() -> None:
    assert [misfit(name, [SCORES], Labels((), 10)) for name in METRICS if name != "miou"] == [None] * 6
    assert misfit("miou", [MASK], Labels((8, 6), 21)) is None
    assert [misfit(name, [SIGNAL], None) for name in ("mse", "cosine", "kl", "agreement")] == [None] * 4


def test_badness_when_metrics_point_either_way_then_the_better_is_the_smaller() -> None:
    assert badness({"accuracy": 0.9, "kl": 0.2}, "accuracy") == -0.9
    assert badness({"accuracy": 0.9, "kl": 0.2}, "kl") == 0.2
    assert badness({"kl": 0.2}, "miou") == float("inf")


@pytest.mark.parametrize(
    ("accuracy", "classes", "rows", "guessing"),
    [
        (0.1, 10, 400, True),
        (0.129, 10, 400, True),  # 0.1 + 2 * 0.015
        (0.131, 10, 400, False),
        (0.02, 10, 400, True),
        (0.55, 2, 100, True),
        (1.0, 2, 4, False),
        (0.75, 2, 4, True),
        (1.0, 1, 100, False),
    ],
)
def test_is_guessing_when_an_accuracy_is_within_what_chance_gives_then_told(
    accuracy: float, classes: int, rows: int, guessing: bool
) -> None:
    assert is_guessing(accuracy, classes, rows) is guessing

"""Figures of an answer, by hand on small cases."""

from __future__ import annotations

import pytest
import torch

from app.domain.graph import Port
from app.domain.metrics import IGNORED
from worker.search.metrics import Constant, NotFinite, check_baseline, labels_of, measure


def test_measure_when_classes_are_labelled_then_accuracy_and_top5() -> None:
    scores = torch.tensor([[9.0, 8, 7, 6, 5, 0, 0], [9, 8, 7, 6, 5, 0, 0], [9, 8, 7, 6, 5, 0, 1]])
    found = measure((scores,), (scores,), [Port("y", (7,))], torch.tensor([0, 4, 6]))
    assert found["accuracy"] == pytest.approx(1 / 3) and found["top5"] == pytest.approx(2 / 3)
    assert found["kl"] == found["mse"] == 0.0 and found["cosine"] == pytest.approx(1.0)


def test_measure_when_there_are_five_classes_then_no_top5() -> None:
    scores = torch.eye(5)
    assert "top5" not in measure((scores,), (scores,), [Port("y", (5,))], torch.arange(5))


def test_measure_when_outputs_differ_then_the_mean_squared_error_and_cosine() -> None:
    wanted, got = torch.tensor([[1.0, 0.0], [0.0, 2.0]]), torch.tensor([[1.0, 1.0], [0.0, 1.0]])
    found = measure((got,), (wanted,), [Port("y", (2,))], None)
    assert found["mse"] == pytest.approx(0.5)
    assert found["cosine"] == pytest.approx((2**-0.5 + 1) / 2)
    assert "accuracy" not in found


def test_measure_when_pixels_are_labelled_then_intersection_over_union_of_the_classes_that_occur() -> None:
    labels = torch.tensor([[[0, 0, 1], [1, IGNORED, 2]]])
    answers = torch.tensor([[[0, 1, 1], [1, 2, 0]]])
    scores = torch.nn.functional.one_hot(answers, 4).permute(0, 3, 1, 2).float()
    found = measure((scores,), (scores,), [Port("mask", (4, 2, 3))], labels)
    # class 0: 1 of 3, class 1: 2 of 3, class 2: 0 of 1; class 3 occurs nowhere; one pixel isn't counted
    assert found["miou"] == pytest.approx((1 / 3 + 2 / 3 + 0) / 3)
    assert found["accuracy"] == pytest.approx(3 / 5)


def test_labels_of_when_pixels_have_no_class_then_those_name_none() -> None:
    found = labels_of(torch.tensor([[[0, IGNORED], [3, 1]]]))
    assert found is not None and (found.shape, found.classes) == ((2, 2), 4)
    assert labels_of(None) is None


def test_check_baseline_when_every_row_gets_the_same_answer_then_refused() -> None:
    with pytest.raises(Constant, match="the same for all 3 rows"):
        check_baseline((torch.ones(3, 4),))
    check_baseline((torch.ones(3, 4), torch.arange(3.0)[:, None]))
    check_baseline((torch.ones(1, 4),))


def test_check_baseline_when_answers_are_not_finite_then_says_how_many_rows_and_the_first() -> None:
    odd = torch.arange(8.0).reshape(4, 2)
    odd[1, 0], odd[3, 1] = float("nan"), float("inf")
    with pytest.raises(NotFinite, match="NaN or infinite for 2 of 4 rows, first for row 1"):
        check_baseline((torch.ones(4), odd))
    with pytest.raises(NotFinite, match="4 of 4 rows, first for row 0"):
        check_baseline((torch.full((4, 2), float("inf")),))

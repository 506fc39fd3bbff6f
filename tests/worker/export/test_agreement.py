"""Distances between outputs."""

from __future__ import annotations

import numpy as np
import pytest

from worker.export.agreement import accuracy, agreement, sqnr_db

A = np.float32([[1, 0], [0, 1], [3, 1], [0, 2]])


def test_agreement_when_one_of_four_rows_flips_then_three_quarters_agree() -> None:
    flipped = A.copy()
    flipped[0] = [0, 1]
    result = agreement(A, flipped)
    assert (result.top1, result.max_error, result.pictures) == (0.75, 1.0, 4)
    assert result.sqnr_db == pytest.approx(10 * np.log10(16 / 2))


def test_agreement_when_shapes_differ_then_refused() -> None:
    with pytest.raises(ValueError, match="answers"):
        agreement(A, A[:, :1])


def test_sqnr_when_scaled_by_a_tenth_more_then_twenty_decibels() -> None:
    assert sqnr_db(A, A * np.float32(1.1)) == pytest.approx(20.0, abs=1e-4)


def test_sqnr_when_equal_silent_or_infinite_then_capped() -> None:
    assert sqnr_db(A, A) == 200.0
    assert sqnr_db(A * 0, A) == -200.0
    assert sqnr_db(A, A + np.float32(np.inf)) == -200.0


def test_accuracy_when_half_the_labels_match_then_half() -> None:
    assert accuracy(A, np.array([0, 1, 1, 0])) == 0.5


def test_agreement_when_two_classes_tie_but_for_rounding_then_either_will_do_and_a_step_further_not() -> None:
    step = np.finfo(np.float32).eps * 8
    simulated = np.float32([[1 + step / 4, 1], [8, 0]])
    assert agreement(simulated, np.float32([[1, 1 + step / 4], [8, 0]])).top1 == 1.0
    apart = np.float32([[1 + 8 * step, 1], [8, 0]])
    assert agreement(apart, np.float32([[1, 1 + 8 * step], [8, 0]])).top1 == 0.5

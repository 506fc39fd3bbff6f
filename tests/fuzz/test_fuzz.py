"""Mutated valid files, 500 per reader: read or refused by name, soon, in little memory. `make fuzz` runs 10,000."""

from __future__ import annotations

import pytest

from tests.fuzz.mutate import mutated
from tests.fuzz.run import fuzz
from tests.fuzz.seeds import seeds

COUNT = 500


@pytest.mark.parametrize("reader", ["onnx", "pt2"])
def test_reader_when_files_are_mutated_then_read_or_refused_by_name(reader: str) -> None:
    tally = fuzz(reader, COUNT)
    assert tally.failures == []
    assert tally.slugs.total() == COUNT
    assert 0 < tally.slugs["read"] < COUNT  # neither harmless nor hopeless
    assert len(tally.slugs) >= 5


@pytest.mark.parametrize("reader", ["onnx", "pt2"])
def test_mutation_when_made_again_then_the_same_bytes(reader: str) -> None:
    held = seeds(reader)
    assert [mutated(reader, held, number) for number in range(20)] == [mutated(reader, held, n) for n in range(20)]
    assert mutated(reader, held, 3) != mutated(reader, held, 3, seed=1)

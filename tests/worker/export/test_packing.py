"""Bit packing: exact, dense, and strict about what it reads."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from worker.export.packing import pack, packed_bytes, unpack


@given(st.integers(2, 16), st.lists(st.integers(1, 7), min_size=1, max_size=4), st.integers(0, 2**32 - 1))
def test_pack_when_unpacked_then_integers_are_the_same(bits: int, shape: list[int], seed: int) -> None:
    limit = 1 << (bits - 1)
    values = np.random.default_rng(seed).integers(-limit, limit, shape)
    stream = pack(values, bits)
    assert stream.size == packed_bytes(values.size, bits)
    np.testing.assert_array_equal(unpack(stream, bits, shape), values)


def test_pack_when_three_bits_then_stream_is_lsb_first_offset_binary() -> None:
    # codes of -4, -1, 0, 3 are 0, 3, 4, 7: bits 000 110 001 111 in stream order, then four zero bits
    assert pack(np.array([-4, -1, 0, 3]), 3).tolist() == [0b00011000, 0b1111]


@pytest.mark.parametrize(("bits", "expected"), [(2, 25), (3, 38), (4, 50), (5, 63), (6, 75), (7, 88), (8, 100)])
def test_packed_bytes_when_hundred_values_then_bits_are_dense(bits: int, expected: int) -> None:
    assert packed_bytes(100, bits) == expected


@pytest.mark.parametrize(("value", "bits"), [(4, 3), (-5, 3), (128, 8), (2, 2)])
def test_pack_when_value_does_not_fit_then_refused(value: int, bits: int) -> None:
    with pytest.raises(ValueError, match="do not fit"):
        pack(np.array([value]), bits)


@pytest.mark.parametrize("bits", [0, 1, 17, 32])
def test_pack_when_width_is_not_packable_then_refused(bits: int) -> None:
    with pytest.raises(ValueError, match="cannot be packed"):
        pack(np.zeros(4, int), bits)


def test_unpack_when_stream_is_short_or_dirty_then_refused() -> None:
    stream = pack(np.zeros(5, int), 3)
    with pytest.raises(ValueError, match="do not hold"):
        unpack(stream[:-1], 3, (5,))
    stream[-1] |= 0x80
    with pytest.raises(ValueError, match="padding bits"):
        unpack(stream, 3, (5,))

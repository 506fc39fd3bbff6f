"""Bit packing: exact, dense, and strict about what it reads."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from worker.export.packing import (
    is_sparser,
    pack,
    pack_sparse,
    packed_bytes,
    sparse_bytes,
    unpack,
    unpack_sparse,
)


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


def thinned(bits: int, shape: list[int], zeros: float, seed: int) -> np.ndarray[Any, Any]:
    """Return random integers of so many bits, a share of them zero."""
    rng, limit = np.random.default_rng(seed), 1 << (bits - 1)
    values = rng.integers(-limit, limit, shape)
    values[rng.random(shape) < zeros] = 0
    return values


@given(
    st.integers(2, 16),
    st.lists(st.integers(0, 9), min_size=1, max_size=4),
    st.floats(0, 1),
    st.integers(0, 2**32 - 1),
)
def test_pack_sparse_when_unpacked_then_integers_are_the_same_and_the_size_is_the_formulas(
    bits: int, shape: list[int], zeros: float, seed: int
) -> None:
    values = thinned(bits, shape, zeros, seed)
    stream, nonzero = pack_sparse(values, bits), int((values != 0).sum())
    assert stream.dtype == np.uint8
    assert stream.size == sparse_bytes(values.size, nonzero, bits) == -(-values.size // 8) - (-nonzero * bits // 8)
    assert is_sparser(values, bits) == (stream.size < pack(values, bits).size)
    found = unpack_sparse(stream, bits, shape)
    assert found.shape == tuple(shape) and found.dtype == (np.int8 if bits <= 8 else np.int16)
    np.testing.assert_array_equal(found, values)
    np.testing.assert_array_equal(pack_sparse(found, bits), stream)


@given(st.integers(2, 16), st.integers(1, 60), st.floats(0, 1), st.integers(0, 2**32 - 1), st.data())
def test_unpack_sparse_when_a_byte_is_another_then_other_integers_or_refused(
    bits: int, count: int, zeros: float, seed: int, data: st.DataObject
) -> None:
    values = thinned(bits, [count], zeros, seed)
    stream = pack_sparse(values, bits)
    stream[data.draw(st.integers(0, stream.size - 1))] ^= data.draw(st.integers(1, 255))
    try:
        found = unpack_sparse(stream, bits, [count])
    except ValueError:
        return
    assert not np.array_equal(found, values)
    np.testing.assert_array_equal(pack_sparse(found, bits), stream)


def test_pack_sparse_when_three_bits_then_marks_come_first_and_codes_behind() -> None:
    # marks 1 0 0 1 0 0 0 0 | 1, padded; codes of -4, 3, -1 are 0, 7, 3
    values = np.array([-4, 0, 0, 3, 0, 0, 0, 0, -1])
    assert pack_sparse(values, 3).tolist() == [0b00001001, 0b1, 0b11111000, 0b0]


@pytest.mark.parametrize(("bits", "zeros", "sparser"), [(2, 4, False), (2, 11, False), (2, 12, True), (8, 1, False),
                                                        (8, 3, True), (4, 4, False), (4, 6, True)])  # fmt: skip
def test_is_sparser_when_zeros_pay_for_their_marks_then_and_only_then(bits: int, zeros: int, sparser: bool) -> None:
    values = np.ones(16, np.int8)
    values[:zeros] = 0
    assert is_sparser(values, bits) is sparser


def test_unpack_sparse_when_stream_is_short_dirty_or_marks_a_zero_then_refused() -> None:
    values = np.array([0, 3, 0, -4, 0])
    stream = pack_sparse(values, 3)
    for bad in (stream[:0], stream[:1], np.append(stream, np.uint8(0)), stream.astype(np.int8), stream[None]):
        with pytest.raises(ValueError, match="do not hold"):
            unpack_sparse(bad, 3, (5,))
    dirty = stream.copy()
    dirty[0] |= 0x80
    with pytest.raises(ValueError, match="padding bits of a sparse stream"):
        unpack_sparse(dirty, 3, (5,))
    dirty = stream.copy()
    dirty[-1] |= 0x80
    with pytest.raises(ValueError, match="padding bits of a packed stream"):
        unpack_sparse(dirty, 3, (5,))
    zero = stream.copy()
    zero[1] = 0b000_100  # the code of zero, 4, in place of the first
    with pytest.raises(ValueError, match="marks a zero"):
        unpack_sparse(zero, 3, (5,))
    with pytest.raises(ValueError, match="cannot be packed"):
        unpack_sparse(stream, 17, (5,))

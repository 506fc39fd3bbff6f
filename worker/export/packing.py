"""Lossless bit packing of signed integers at 2 to 16 bits.

Offset binary: the integer q is stored as the code q + 2^(bits-1). Codes follow each other in one stream, the least
significant bit first, padded with zero bits to a whole byte.

Sparse: one bit per integer, the least significant first, tells which are not zero, padded with zero bits to a whole
byte; behind it lie those, packed as above. The shorter of the two forms is stored; of equal ones, the plain.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

MIN_BITS, MAX_BITS = 2, 16


def packed_bytes(count: int, bits: int) -> int:
    """Return the bytes that `count` integers of `bits` bits take."""
    return -(-count * bits // 8)


def sparse_bytes(count: int, nonzero: int, bits: int) -> int:
    """Return the bytes that `count` integers of `bits` bits take in sparse form, `nonzero` of them not zero."""
    return -(-count // 8) + packed_bytes(nonzero, bits)


def is_sparser(values: NDArray[Any], bits: int) -> bool:
    """Tell whether integers take fewer bytes in sparse form than packed."""
    return sparse_bytes(values.size, int(np.count_nonzero(values)), bits) < packed_bytes(values.size, bits)


def pack(values: NDArray[Any], bits: int) -> NDArray[np.uint8]:
    """Return the bit stream of `values` (any shape, C order) as bytes.

    Raises ValueError for a width outside 2..16 or a value outside [-2^(bits-1), 2^(bits-1) - 1].
    """
    offset = _offset(bits)
    flat = values.reshape(-1).astype(np.int64)
    if flat.size and (flat.min() < -offset or flat.max() >= offset):
        raise ValueError(f"values reach from {flat.min()} to {flat.max()}: they do not fit into {bits} bits")
    codes = (flat + offset).astype("<u2").view(np.uint8).reshape(-1, 2)
    planes = np.unpackbits(codes, axis=1, count=bits, bitorder="little")
    return np.packbits(planes.reshape(-1), bitorder="little")


def unpack(stream: NDArray[np.uint8], bits: int, shape: Sequence[int]) -> NDArray[Any]:
    """Return the integers that `pack` wrote, in `shape`: int8 up to 8 bits, int16 above.

    Raises ValueError when the stream's length does not belong to the shape, or padding bits are set.
    """
    offset, count = _offset(bits), math.prod(shape)
    if stream.dtype != np.uint8 or stream.ndim != 1 or stream.size != packed_bytes(count, bits):
        raise ValueError(f"{stream.size} bytes do not hold {count} integers of {bits} bits")
    planes = np.unpackbits(stream, bitorder="little")
    if planes[count * bits :].any():
        raise ValueError("padding bits of a packed stream are set")
    wide = np.zeros((count, MAX_BITS), np.uint8)
    wide[:, :bits] = planes[: count * bits].reshape(count, bits)
    codes = np.packbits(wide, axis=1, bitorder="little").view("<u2").reshape(-1)
    return (codes.astype(np.int32) - offset).astype(np.int8 if bits <= 8 else np.int16).reshape(tuple(shape))


def pack_sparse(values: NDArray[Any], bits: int) -> NDArray[np.uint8]:
    """Return the integers of `values` (any shape, C order) in sparse form. Raises ValueError as `pack` does."""
    flat = values.reshape(-1)
    return np.concatenate([np.packbits(flat != 0, bitorder="little"), pack(flat[flat != 0], bits)])


def unpack_sparse(stream: NDArray[np.uint8], bits: int, shape: Sequence[int]) -> NDArray[Any]:
    """Return the integers that `pack_sparse` wrote, in `shape`: int8 up to 8 bits, int16 above.

    Raises ValueError when the stream's length does not belong to the shape and the integers that are not zero, padding
    bits are set, or one of those is zero all the same.
    """
    _offset(bits)
    count = math.prod(shape)
    marks = -(-count // 8)
    if stream.dtype != np.uint8 or stream.ndim != 1 or stream.size < marks:
        raise ValueError(f"{stream.size} bytes do not hold {count} marks")
    mask = np.unpackbits(stream[:marks], bitorder="little").astype(bool)
    if mask[count:].any():
        raise ValueError("padding bits of a sparse stream's marks are set")
    held = unpack(stream[marks:], bits, (int(np.count_nonzero(mask)),))
    if not held.all():
        raise ValueError("a sparse stream marks a zero")
    values = np.zeros(count, held.dtype)
    values[mask[:count]] = held
    return values.reshape(tuple(shape))


def _offset(bits: int) -> int:
    if not MIN_BITS <= bits <= MAX_BITS:
        raise ValueError(f"{bits} bits cannot be packed: {MIN_BITS} to {MAX_BITS} can")
    return 1 << (bits - 1)

"""The laws of an ONNX file's bytes, checked before protobuf builds objects from them.

An empty message takes two bytes in the file and a hundred in memory, so a small file could fill it. This walk over the
wire format (protobuf.dev/programming-guides/encoding) builds nothing: it counts fields and messages and stops at a cap.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import onnx

from app.domain.zip_laws import Buffer
from worker.graph.errors import NetworkRefused

MAX_MESSAGES = 250_000
MAX_FIELDS = 1_000_000
MAX_PACKED = 4 << 20
MAX_DEPTH = 64

_PACKED = "packed"
_VARINTS = frozenset(
    {3, 4, 5, 8, 13, 14, 17, 18}
)  # field types stored as varints: a byte in the file, 4 or 8 in memory


def check_wire(data: Buffer) -> None:
    """Check that a ModelProto's fields lie inside each other and are not too many.

    Raises NetworkRefused: invalid-onnx, or model-too-large above 250,000 messages, a million fields or 4 MiB of
    packed integers.
    """
    try:
        _Walk(data).run()
    except IndexError as error:
        raise _invalid("a field runs over the end of the file") from error


def _invalid(detail: str) -> NetworkRefused:
    return NetworkRefused("invalid-onnx", f"not an ONNX model: {detail}")


@cache
def _inner(descriptor: Any) -> dict[int, Any]:
    """Return, by field number, the descriptor of fields that hold messages, and `_PACKED` for rows of integers."""
    found: dict[int, Any] = {}
    for number, field in descriptor.fields_by_number.items():
        if field.message_type is not None:
            found[number] = field.message_type
        elif field.type in _VARINTS and isinstance(field.default_value, list):
            found[number] = _PACKED
    return found


class _Walk:
    """One pass over the bytes, depth first."""

    def __init__(self, data: Buffer) -> None:
        self.data = data
        self.fields = self.messages = self.packed = 0

    def run(self) -> None:
        """Walk; the stack holds, per open message, where it ends and what its fields mean."""
        at, end, known = 0, len(self.data), _inner(onnx.ModelProto.DESCRIPTOR)
        stack: list[tuple[int, dict[int, Any]]] = []
        while True:
            while at == end:
                if not stack:
                    return
                end, known = stack.pop()
            at, stop, inner = self._field(at, known)
            if stop > end:  # content never ends before it begins
                raise _invalid("a field runs over the end of its message")
            if inner is None:
                at = stop
                continue
            self._enter(len(stack))
            stack.append((end, known))
            end, known = stop, _inner(inner)

    def _enter(self, depth: int) -> None:
        self.messages += 1
        if self.messages > MAX_MESSAGES:
            raise NetworkRefused("model-too-large", f"more than {MAX_MESSAGES} messages")
        if depth >= MAX_DEPTH:
            raise _invalid(f"messages nested more than {MAX_DEPTH} deep")

    def _field(self, at: int, known: dict[int, Any]) -> tuple[int, int, Any]:
        """Return where a field's content begins and ends, and the message type it holds, if any."""
        self.fields += 1
        if self.fields > MAX_FIELDS:
            raise NetworkRefused("model-too-large", f"more than {MAX_FIELDS} fields")
        data = self.data
        # tags of low fields and lengths of names take one byte: they are read here, a call saved on nearly every field
        tag, at = (data[at], at + 1) if data[at] < 128 else self._varint(at)
        kind = tag & 7
        if kind == 2:
            size, at = (data[at], at + 1) if data[at] < 128 else self._varint(at)
            inner = known.get(tag >> 3)
            return at, at + size, None if inner is None else self._meaning(inner, size)
        if kind == 0:
            at = self._varint(at)[1]
            return at, at, None
        if kind in (1, 5):
            return at, at + (8 if kind == 1 else 4), None
        raise _invalid(f"a field of wire type {kind}")

    def _meaning(self, inner: Any, size: int) -> Any:
        if inner is not _PACKED:
            return inner
        self.packed += size
        if self.packed > MAX_PACKED:
            raise NetworkRefused("model-too-large", "large tensors of integers must be stored raw")
        return None

    def _varint(self, at: int) -> tuple[int, int]:
        value = 0
        for shift in range(0, 70, 7):
            byte = self.data[at]
            at += 1
            value |= (byte & 127) << shift
            if byte < 128:
                return value, at
        raise _invalid("a number of more than ten bytes")

"""The checkpoint's container refuses whatever it did not write."""

from __future__ import annotations

import io
import zipfile

import numpy as np
import pytest

from worker.export import archive
from worker.export.archive import CheckpointRefused, read_archive, write_archive

TENSORS = {"a": np.arange(6, dtype=np.uint8), "b": np.float32([[1.5, -2.0]])}


def rezipped(changes: dict[str, bytes | None], compression: int = zipfile.ZIP_STORED) -> bytes:
    """The sound archive with entries replaced, added or (None) dropped."""
    entries: dict[str, bytes | None] = {}
    with zipfile.ZipFile(io.BytesIO(write_archive(TENSORS, {"k": 1}, {"m": [1.25]}))) as sound:
        entries = {name: sound.read(name) for name in sound.namelist()}
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compression) as out:
        for name, content in {**entries, **changes}.items():
            if content is not None:
                out.writestr(name, content)
    return buffer.getvalue()


def test_archive_when_read_back_then_everything_is_the_same() -> None:
    tensors, graph, manifest = read_archive(write_archive(TENSORS, {"k": 1}, {"m": [1.25]}))
    assert (graph, manifest) == ({"k": 1}, {"m": [1.25]})
    assert tensors.keys() == TENSORS.keys()
    for name, tensor in TENSORS.items():
        np.testing.assert_array_equal(tensors[name], tensor)


def test_archive_when_written_twice_then_bytes_are_equal() -> None:
    first = write_archive(TENSORS, {"k": 1, "a": 2}, {})
    second = write_archive(dict(reversed(TENSORS.items())), {"a": 2, "k": 1}, {})
    assert first == second


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"../evil": b"x"}, "not exactly"),
        ({"data.pkl": b"x"}, "not exactly"),
        ({"manifest.json": None}, "not exactly"),
        ({"graph.json": b"[1]"}, "no JSON object"),
        ({"graph.json": b'{"a": NaN}'}, "not sound JSON"),
        ({"graph.json": b"[" * 100_000}, "not sound JSON"),
        ({"graph.json": b"\xff\xfe"}, "not sound JSON"),
        ({"weights.safetensors": b"\x00" * 7}, "not a sound safetensors"),
        ({"weights.safetensors": b"\xff" * 64}, "not a sound safetensors"),
    ],
)
def test_read_archive_when_an_entry_is_bad_then_refused(changes: dict[str, bytes | None], message: str) -> None:
    with pytest.raises(CheckpointRefused, match=message):
        read_archive(rezipped(changes))


def test_read_archive_when_compressed_then_refused() -> None:
    with pytest.raises(CheckpointRefused, match="must be stored"):
        read_archive(rezipped({}, zipfile.ZIP_DEFLATED))


def test_read_archive_when_an_entry_is_over_its_cap_then_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(archive.CAPS, "manifest.json", 5)
    with pytest.raises(CheckpointRefused, match="has 6 bytes") as refusal:
        read_archive(rezipped({"manifest.json": b'{"a":1'}))
    assert refusal.value.slug == "model-too-large"


@pytest.mark.parametrize("kept", [0, 1, 50, 200, -1, -30])
def test_read_archive_when_truncated_then_refused(kept: int) -> None:
    with pytest.raises(CheckpointRefused):
        read_archive(write_archive(TENSORS, {"k": 1}, {})[:kept])


def test_read_archive_when_any_byte_of_a_tensor_is_flipped_then_refused() -> None:
    data = bytearray(write_archive(TENSORS, {"k": 1}, {}))
    data[data.index(bytes(range(6))) + 2] ^= 1
    with pytest.raises(CheckpointRefused, match="Bad CRC"):
        read_archive(bytes(data))

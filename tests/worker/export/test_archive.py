"""The checkpoint's container refuses whatever it did not write."""

from __future__ import annotations

import hashlib
import io
import subprocess
import zipfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from worker.export import archive
from worker.export.archive import CheckpointRefused, Tensors, read_archive, write_archive
from worker.files import stored_zip

SLUGS = ("digest-mismatch", "invalid-archive", "model-too-large")
TENSORS: Tensors = {"a": np.arange(6, dtype=np.uint8), "b": np.array([[1.5, -2.0]], np.float32)}


def entries(data: bytes) -> dict[str, bytes]:
    with zipfile.ZipFile(io.BytesIO(data)) as sound:
        return {name: sound.read(name) for name in sound.namelist()}


def rezipped(changes: dict[str, bytes | None], summed: bool = True) -> bytes:
    """The sound archive with entries replaced, added or (None) dropped, by one who sets the digests right."""
    merged = {**entries(write_archive(TENSORS, {"k": 1}, {"m": [1.25]})), **changes}
    held = {name: content for name, content in merged.items() if content is not None}
    if summed and "SHA256SUMS" not in changes:
        named = [name for name in held if name != "SHA256SUMS"]
        held["SHA256SUMS"] = "".join(f"{hashlib.sha256(held[n]).hexdigest()}  {n}\n" for n in named).encode()
    return stored_zip(held.items())


def test_archive_when_read_back_then_everything_is_the_same() -> None:
    tensors, graph, manifest = read_archive(write_archive(TENSORS, {"k": 1}, {"m": [1.25]}))
    assert (graph, manifest) == ({"k": 1}, {"m": [1.25]})
    assert tensors.keys() == TENSORS.keys()
    for name, tensor in TENSORS.items():
        np.testing.assert_array_equal(tensors[name], tensor)


def test_archive_when_written_twice_then_bytes_are_equal() -> None:
    first = write_archive(TENSORS, {"k": 1, "a": 2}, {})
    second = write_archive(dict(reversed(list(TENSORS.items()))), {"a": 2, "k": 1}, {})
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
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as out:
        for name, content in entries(write_archive(TENSORS, {"k": 1}, {})).items():
            out.writestr(name, content)
    with pytest.raises(CheckpointRefused, match="must be stored"):
        read_archive(buffer.getvalue())


def test_read_archive_when_an_entry_is_over_its_cap_then_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(archive.CAPS, "manifest.json", 5)
    with pytest.raises(CheckpointRefused, match="has 6 bytes") as refusal:
        read_archive(rezipped({"manifest.json": b'{"a":1'}))
    assert refusal.value.slug == "model-too-large"


def test_write_archive_when_entries_are_summed_then_as_sha256sum_checks_them(tmp_path: Path) -> None:
    for name, content in entries(write_archive(TENSORS, {"k": 1}, {})).items():
        (tmp_path / name).write_bytes(content)
    checked = subprocess.run(["sha256sum", "-c", "SHA256SUMS"], cwd=tmp_path, capture_output=True, text=True)
    assert (checked.returncode, checked.stdout.count(": OK")) == (0, 3)


@pytest.mark.parametrize("name", ["weights.safetensors", "graph.json", "manifest.json"])
def test_read_archive_when_an_entry_is_another_then_refused_by_its_digest(name: str) -> None:
    other = entries(write_archive({"a": np.zeros(6, np.uint8), "b": TENSORS["b"]}, {"k": 2}, {"m": [1.5]}))
    with pytest.raises(CheckpointRefused, match=f"other bytes than those of \\['{name}'\\]") as refusal:
        read_archive(rezipped({name: other[name]}, summed=False))
    assert refusal.value.slug == "digest-mismatch"


@pytest.mark.parametrize("sums", [b"", b"0" * 64 + b"  graph.json\n", b"\xff" * 200])
def test_read_archive_when_the_digests_are_others_then_refused(sums: bytes) -> None:
    with pytest.raises(CheckpointRefused) as refusal:
        read_archive(rezipped({"SHA256SUMS": sums}))
    assert refusal.value.slug == "digest-mismatch"


def test_read_archive_when_it_is_of_a_version_without_digests_then_refused() -> None:
    with pytest.raises(CheckpointRefused, match="not exactly"):
        read_archive(rezipped({"SHA256SUMS": None}))


def test_read_archive_when_any_byte_is_another_then_refused() -> None:
    """Exhaustively: every byte of a small archive, one bit of it and all of it; contents by their digest."""
    data = write_archive(TENSORS, {"k": 1}, {"m": [1.25]})
    inside = {data.index(content) + at for content in entries(data).values() for at in range(len(content))}
    for at in range(len(data)):
        for mask in (1, 0x80, 0xFF):
            with pytest.raises(CheckpointRefused) as refusal:
                read_archive(data[:at] + bytes([data[at] ^ mask]) + data[at + 1 :])
            assert refusal.value.slug == "digest-mismatch" if at in inside else refusal.value.slug in SLUGS


def test_read_archive_when_truncated_anywhere_or_longer_then_refused() -> None:
    data = write_archive(TENSORS, {"k": 1}, {})
    for altered in [*(data[:kept] for kept in range(len(data))), data + b"\0", b"\0" + data, data + data]:
        with pytest.raises(CheckpointRefused) as refusal:
            read_archive(altered)
        assert refusal.value.slug in SLUGS


@given(st.data())
def test_read_archive_when_a_stretch_is_cut_out_doubled_or_overwritten_then_refused(data: st.DataObject) -> None:
    sound = write_archive(TENSORS, {"k": 1}, {"m": [1.25]})
    first, last = sorted(data.draw(st.tuples(*[st.integers(0, len(sound))] * 2)))
    middle = data.draw(st.sampled_from([b"", 2 * sound[first:last], bytes(last - first), data.draw(st.binary())]))
    altered = sound[:first] + middle + sound[last:]
    assume(altered != sound)
    with pytest.raises(CheckpointRefused) as refusal:
        read_archive(altered)
    assert refusal.value.slug in SLUGS


def test_write_archive_when_written_by_any_version_then_these_bytes() -> None:
    """Readers compare the container byte by byte: files of one version of Python must be those of another."""
    data = write_archive({"a": TENSORS["a"]}, {"k": 1}, {})
    assert hashlib.sha256(data).hexdigest() == "0bb32e542ff8e7f5322d5f70b081bc88a4f7beba64dc752c6728d55d0c07fc85"

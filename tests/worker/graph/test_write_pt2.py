"""A canonical graph as a torch.export archive: readable by torch and by our own reader, the same bytes, no pickle."""

from __future__ import annotations

import io
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import torch

from tests.worker.digit_files import Net, exported
from worker.graph.read import read_network
from worker.graph.write_pt2 import write_pt2

ROOT = Path(__file__).resolve().parents[3]
SCRIPT = """
import hashlib, sys
from worker.graph.read import read_network
from worker.graph.write_pt2 import write_pt2
print(hashlib.sha256(write_pt2(read_network(open(sys.argv[1], "rb").read(), "pt2"))).hexdigest())
"""


@pytest.fixture(scope="module")
def source() -> bytes:
    torch.manual_seed(0)
    return exported(Net())


@pytest.fixture(scope="module")
def written(source: bytes) -> bytes:
    return write_pt2(read_network(source, "pt2"))


@pytest.mark.parametrize("batch", [1, 2, 7])
def test_written_archive_when_read_by_torch_and_by_ours_then_any_batch_gives_the_same(
    source: bytes, written: bytes, batch: int
) -> None:
    x = torch.randn(batch, 1, 8, 8)
    with torch.no_grad():
        wanted = read_network(source, "pt2")(x)
        loaded = torch.export.load(io.BytesIO(written)).module()(x)
        own = read_network(written, "pt2")(x)
    assert torch.allclose(loaded, wanted, atol=1e-6)
    assert torch.allclose(own, wanted, atol=1e-6)


def test_written_archive_when_opened_then_stored_entries_of_fixed_stamps_and_no_pickle(written: bytes) -> None:
    with zipfile.ZipFile(io.BytesIO(written)) as archive:
        items = archive.infolist()
        assert {item.compress_type for item in items} == {zipfile.ZIP_STORED}
        assert {item.date_time for item in items} == {(1980, 1, 1, 0, 0, 0)}
        held = {item.filename.partition("/")[2]: archive.read(item) for item in items}
    assert held["data/sample_inputs/model.pt"] == b""
    assert ".data/serialization_id" not in held
    assert not any(b"data.pkl" in content or b"_rebuild_tensor" in content for content in held.values())
    assert b".py" not in held["models/model.json"] and str(ROOT).encode() not in held["models/model.json"]


def test_written_archive_when_written_by_another_process_then_the_same_bytes(source: bytes, tmp_path: Path) -> None:
    (tmp_path / "net.pt2").write_bytes(source)
    command = [sys.executable, "-c", SCRIPT, str(tmp_path / "net.pt2")]
    found = {
        subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip() for _ in range(2)
    }
    assert len(found) == 1 and len(found.pop()) == 64


def test_write_when_done_then_the_graph_that_was_written_stays_as_it_was(source: bytes) -> None:
    module = read_network(source, "pt2")
    for parameter in module.parameters():
        if parameter.dim() == 4:
            parameter.data = parameter.data.contiguous(memory_format=torch.channels_last)
    first = {name: (value.stride(), value.data_ptr()) for name, value in module.named_parameters()}
    assert write_pt2(module) == write_pt2(module)
    assert {name: (value.stride(), value.data_ptr()) for name, value in module.named_parameters()} == first

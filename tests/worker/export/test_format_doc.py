"""docs/checkpoint-format.md says enough to read the weights with numpy alone: its own program is run."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.worker.export.reading import program, read_by_the_document
from worker.export.archive import read_archive, write_archive
from worker.export.checkpoint import dequantized, write_checkpoint
from worker.quant.network import CompressedNetwork

EPILOGUE = """
assert not {"torch", "safetensors", "worker", "tightfit"} & set(sys.modules)
np.savez("weights.npz", **weights)
np.savez("integers.npz", **integers)
"""


def test_document_when_its_program_is_run_with_numpy_alone_then_every_integer_and_weight_is_the_same(
    mixed: CompressedNetwork, tmp_path: Path
) -> None:
    (tmp_path / "model.tightfit").write_bytes(write_checkpoint(mixed, {}))
    command = [sys.executable, "-c", program() + EPILOGUE, "model.tightfit"]
    subprocess.run(command, cwd=tmp_path, check=True)
    weights, integers = (np.load(tmp_path / f"{name}.npz") for name in ("weights", "integers"))
    assert set(weights.files) == set(integers.files) == set(mixed.layers)
    assert {layer.bits for layer in mixed.layers.values()} == {2, 3, 4, 5, 6, 7, 8}
    for name, layer in mixed.layers.items():
        np.testing.assert_array_equal(integers[name], layer.weight_int)
        np.testing.assert_array_equal(weights[name], dequantized(layer))


def test_document_when_an_entry_is_damaged_then_its_program_ends_by_the_digest(
    mixed: CompressedNetwork, tmp_path: Path
) -> None:
    from tests.worker.export.test_archive import entries
    from worker.files import stored_zip

    held = entries(write_checkpoint(mixed, {}))
    other = entries(write_archive(*read_archive(write_checkpoint(mixed, {"seed": 2}))))
    (tmp_path / "model.tightfit").write_bytes(stored_zip({**held, "manifest.json": other["manifest.json"]}.items()))
    with pytest.raises(AssertionError, match=r"manifest\.json is damaged"):
        read_by_the_document(tmp_path / "model.tightfit")

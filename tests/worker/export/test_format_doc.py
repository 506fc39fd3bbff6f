"""docs/checkpoint-format.md says enough to read the weights with numpy alone: its own program is run."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import numpy as np

from worker.export.checkpoint import dequantized, write_checkpoint
from worker.quant.network import CompressedNetwork

DOC = Path(__file__).resolve().parents[3] / "docs" / "checkpoint-format.md"
EPILOGUE = """
assert not {"torch", "safetensors", "worker", "tightfit"} & set(sys.modules)
np.savez(sys.argv[2], **weights)
"""


def test_document_when_its_program_is_run_with_numpy_alone_then_every_weight_is_bit_identical(
    mixed: CompressedNetwork, tmp_path: Path
) -> None:
    program = re.findall(r"```python\n(.*?)```", DOC.read_text(), re.S)
    assert len(program) == 1
    (tmp_path / "model.tightfit").write_bytes(write_checkpoint(mixed, {}))
    command = [sys.executable, "-c", program[0] + EPILOGUE, "model.tightfit", "weights.npz"]
    subprocess.run(command, cwd=tmp_path, check=True)
    read = np.load(tmp_path / "weights.npz")
    assert set(read.files) == set(mixed.layers)
    assert {layer.bits for layer in mixed.layers.values()} == {2, 3, 4, 5, 6, 7, 8}
    for name, layer in mixed.layers.items():
        np.testing.assert_array_equal(read[name], dequantized(layer))

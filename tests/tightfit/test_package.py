"""The import package is light until something is asked of it."""

from __future__ import annotations

import subprocess
import sys

import pytest

import tightfit


def test_import_when_nothing_is_used_then_nothing_heavy_is_loaded() -> None:
    code = "import tightfit, sys; print([m for m in ('torch', 'onnx', 'httpx', 'numpy', 'worker') if m in sys.modules])"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


def test_attributes_when_listed_then_load_and_client_are_there() -> None:
    assert dir(tightfit) == ["CheckpointRefused", "Client", "load"]
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        getattr(tightfit, "nothing")  # noqa: B009

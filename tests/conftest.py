"""Shared fixtures: where the optional reference data lies."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Return the folder with reference datasets and checkpoints, or skip where it is absent."""
    folder = Path(os.environ.get("TIGHTFIT_SHARED", ROOT.parent / "shared")) / "data"
    if not (folder / "models" / "resnet8_cifar10.onnx").exists():
        pytest.skip("the reference data folder (../shared/data) is absent")
    return folder

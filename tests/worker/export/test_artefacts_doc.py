"""docs/artefacts.md loads every file as it says: its own programs are run on a real export."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from app.domain.artefacts import KINDS
from worker.export.export import export_all
from worker.quant.network import CompressedNetwork

from .conftest import Lab

DOC = Path(__file__).resolve().parents[3] / "docs" / "artefacts.md"
PROGRAMS = re.findall(r"```python\n(.*?)```", DOC.read_text(), re.DOTALL)


@pytest.fixture(scope="module")
def folder(lab: Lab, mixed: CompressedNetwork, tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("export")
    export_all(lab.request(mixed), made)
    return made


@pytest.mark.parametrize("program", PROGRAMS, ids=lambda text: re.findall(r'"(.*?)"', text)[0])
def test_program_of_the_page_when_run_then_it_loads_the_file(
    program: str, folder: Path, lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    assert len([line for line in program.splitlines() if line]) == 3
    held: dict[str, Any] = {"torch": torch, "x": lab.data["evaluation"].inputs[0].numpy().copy()}
    with torch.no_grad():
        exec(program, held)
    if "grids" in held:
        assert held["grids"]["stem.weight"]["bw"] == 8 and held["grids"]["x"]["dtype"] == "INT"
    else:
        labels = lab.data["evaluation"].labels
        assert labels is not None
        assert (np.asarray(held["scores"]).argmax(1) == labels.numpy()).mean() > 0.9


def test_page_when_read_then_it_names_every_kind_and_the_end_of_its_file() -> None:
    rows = dict(re.findall(r"^\| `([\w-]+)` \| `(\.[\w.]+)` \|", DOC.read_text(), re.MULTILINE))
    assert rows == {kind: item.suffix for kind, item in KINDS.items()}

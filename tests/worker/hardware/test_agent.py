"""The agent's process: what it imports, and how it groups what it measures."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from worker.hardware.agent import GROUP, groups, main

ROOT = Path(__file__).resolve().parents[3]


def test_agent_when_imported_then_neither_torch_nor_onnx_nor_the_service_is() -> None:
    code = "import sys, worker.hardware.agent; print(*sorted({name.split('.')[0] for name in sys.modules}))"
    answer = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    loaded = set(answer.stdout.split())
    assert {"onnxruntime", "numpy", "httpx"} <= loaded
    assert not {"torch", "onnx", "optuna", "scipy", "app", "fastapi", "sqlalchemy"} & loaded


@pytest.mark.parametrize(("kind", "sizes"), [("time", [GROUP, GROUP, 1]), ("kernels", [1] * (2 * GROUP + 1))])
def test_groups_when_split_then_timed_together_or_profiled_alone(kind: str, sizes: list[int]) -> None:
    items = [{"id": str(index)} for index in range(2 * GROUP + 1)]
    parts = list(groups({"kind": kind, "items": items}))
    assert [len(part) for part in parts] == sizes
    assert [item for part in parts for item in part] == items


def test_main_when_not_enrolled_and_without_code_then_says_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--file", str(tmp_path / "agent.json")]) == 1
    assert "not enrolled yet" in capsys.readouterr().err

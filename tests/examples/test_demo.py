"""The demo as its user runs it: a process that ends with 0 only where every line of the verdict holds."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
HOLDING = (
    "limits kept, the device's own too",
    "outcome",
    "verification",
    "hold-out accuracy, compressed",
    "ONNX = simulation (top-1, 1,797)",
)


@pytest.mark.slow
def test_demo_when_run_then_every_line_of_its_verdict_holds(tmp_path: Path) -> None:
    command = [sys.executable, str(ROOT / "examples" / "demo.py"), str(tmp_path / "demo")]
    environment = {**os.environ, "COLUMNS": "120", "OMP_NUM_THREADS": "1"}
    ran = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=280)
    assert ran.returncode == 0, ran.stdout[-4000:] + ran.stderr[-2000:]
    lines = {
        words[0]: words[1:] for line in ran.stdout.splitlines() if len(words := re.split(r"\s{2,}", line.strip())) > 1
    }
    assert {name: lines[name][-1] for name in HOLDING} == dict.fromkeys(HOLDING, "ok")
    kept, wanted = lines[HOLDING[0]][:2]
    assert kept == wanted and int(kept) >= 3
    assert lines["outcome"][0] == "feasible" and lines["verification"][0] == "verified"
    before, after = (float(lines[f"hold-out accuracy, {which}"][0].rstrip(" %")) for which in ("float", "compressed"))
    assert before > 90 and after >= before - 2.0
    assert "Everything holds" in ran.stdout and (tmp_path / "demo" / "digits.onnx").stat().st_size > 1000

"""The house rules that can be measured: sizes, parameters, nesting, and who may see whom."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SOURCES = sorted(path for room in ("app", "worker", "tightfit", "migrations") for path in (ROOT / room).rglob("*.py"))
MAX_FILE, MAX_FUNCTION, MAX_PARAMETERS, MAX_NESTING = 500, 60, 6, 4
HEAVY = ("torch", "optuna", "onnx", "onnxruntime", "scipy", "plotly", "worker")
LATER = ("alembic", "jinja2", "mako", "numpy", "pygments", "rich", "typer")
"""What the service needs at certain moments only; an idle one is to fit in 100 MiB."""

Function = ast.FunctionDef | ast.AsyncFunctionDef


def functions(path: Path) -> Iterator[Function]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, Function):
            yield node


def parameters(function: Function) -> int:
    args = function.args
    names = [arg.arg for arg in (*args.posonlyargs, *args.args, *args.kwonlyargs)]
    return len([name for name in names if name not in ("self", "cls")])


def nesting(node: ast.AST, depth: int = 0) -> int:
    blocks = (ast.If, ast.For, ast.While, ast.With, ast.Try, ast.AsyncFor, ast.AsyncWith)
    deepest = depth
    for child in ast.iter_child_nodes(node):
        if isinstance(child, Function | ast.ClassDef):
            continue
        inside = depth + (isinstance(child, blocks) and not _is_elif(node, child))
        deepest = max(deepest, nesting(child, inside))
    return deepest


def _is_elif(parent: ast.AST, child: ast.AST) -> bool:
    return isinstance(parent, ast.If) and isinstance(child, ast.If) and parent.orelse == [child]


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_source_file_when_measured_then_stays_inside_the_house_limits(path: Path) -> None:
    assert len(path.read_text().splitlines()) <= MAX_FILE
    for function in functions(path):
        where = f"{function.name} (line {function.lineno})"
        assert function.end_lineno is not None
        assert function.end_lineno - function.lineno + 1 <= MAX_FUNCTION, f"{where} is too long"
        assert parameters(function) <= MAX_PARAMETERS, f"{where} has too many parameters"
        assert nesting(function) <= MAX_NESTING, f"{where} is nested too deeply"


def test_functions_when_measured_then_the_median_is_about_ten_lines() -> None:
    lengths = sorted((f.end_lineno or 0) - f.lineno + 1 for path in SOURCES for f in functions(path))
    assert len(lengths) > 100
    assert lengths[len(lengths) // 2] <= 12


@pytest.mark.parametrize("module", ["app.main", "app.cli", "app.client", "app.supervisor"])
def test_service_module_when_imported_then_nothing_heavy_comes_along(module: str) -> None:
    code = f"import {module}, sys; print([m for m in {HEAVY!r} if m in sys.modules])"
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


def test_service_when_made_then_what_it_may_never_need_is_not_in_memory(tmp_path: Path) -> None:
    code = (
        "import app.supervisor, sys; from app.main import create_app; from app.settings import Settings\n"
        f"create_app(Settings(data_dir={str(tmp_path)!r})); print([m for m in {LATER!r} if m in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


def test_domain_when_imported_then_only_the_standard_library_comes_along() -> None:
    names = ",".join(f"app.domain.{path.stem}" for path in (ROOT / "app" / "domain").glob("[a-z]*.py"))
    code = (
        f"import sys, {names}\n"
        "mine = {m.split('.')[0] for m in sys.modules} - set(sys.stdlib_module_names)\n"
        "print(sorted(m for m in mine if not m.startswith('_') and m != 'app'))"
    )
    command = [sys.executable, "-S", "-c", "import sys; sys.path.insert(0, '.')\n" + code]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert result.stdout.strip() in ("[]", "['sitecustomize']")

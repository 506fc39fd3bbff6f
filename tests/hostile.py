"""Hostile uploads: every file that must be refused, by which name, and what is accepted although it looks hostile.

The files are made by code in `tests/security`. Those with a payload would touch `marker()`; it must never be there.
`python -m tests.hostile` sends all of them through a sandboxed child and prints what each cost.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from tests.security import archives, onnx_files, pickles, programs, sets, tensors

Kind = Literal["network", "dataset", "weights"]
KINDS: tuple[Kind, ...] = ("network", "dataset", "weights")
marker = pickles.marker


@dataclass(frozen=True)
class Case:
    """One upload: the class of attack, what it is uploaded as, its bytes, and the answer ("read" where accepted)."""

    attack: str
    name: str
    kind: Kind
    make: Callable[[], bytes]
    slug: str
    pointer: str = ""

    def __str__(self) -> str:
        return f"{self.attack}: {self.name} ({self.kind})"


def cases() -> list[Case]:
    """Return every case."""
    return [*_formats(), *_archives(), *_programs(), *_onnx(), *_tensors(), *_sets()]


def _formats() -> Iterator[Case]:
    for kind in KINDS:
        for name, make in pickles.NOISE.items():
            yield Case("noise", name, kind, make, "unrecognised-format")
        for name, make in pickles.PICKLES.items():
            yield Case("pickle", name, kind, make, "unsafe-format")
        for name, make in pickles.CHECKPOINTS.items():
            yield Case("checkpoint", name, kind, make, "unsafe-format")
        for name, (make, slug) in pickles.FOREIGN.items():
            yield Case("foreign format", name, kind, make, slug)


def _archives() -> Iterator[Case]:
    for name, make in archives.LEGAL.items():
        yield Case("archive", name, "network", make, "read")
    for name, (make, slug) in archives.BOMBS.items():
        yield Case("bomb", name, "network", make, slug)
    for name, make in archives.LIES.items():
        yield Case("lying archive", name, "network", make, "invalid-archive")
    for name, make in archives.ESCAPES.items():
        yield Case("escape", name[:30], "network", make, "invalid-archive")
    for name, (kind, make) in archives.POLYGLOTS.items():
        yield Case("polyglot", name, kind, make, "trailing-data")


def _programs() -> Iterator[Case]:
    for name, make in programs.LEGAL.items():
        yield Case("program", name, "network", make, "read")
    for name, (make, pointer) in programs.UNSAFE.items():
        yield Case("program", name, "network", make, "unsafe-format", pointer)
    for name, make in programs.DYNAMIC.items():
        yield Case("program", name, "network", make, "dynamic-shape-unsupported")
    for name, (make, _) in programs.TARGETS.items():
        yield Case("target", name, "network", make, "unsupported-operator")
    for name, (make, slug) in programs.GRAPHS.items():
        yield Case("graph", name, "network", make, slug)
    for name, make in programs.TENSORS.items():
        yield Case("tensor", name, "network", make, "invalid-tensor")


def _onnx() -> Iterator[Case]:
    yield Case("ONNX", "sound", "network", onnx_files.legal, "read")
    for name, make in onnx_files.OUTSIDE.items():
        yield Case("external data", name, "network", make, "external-data-refused")
    for name, (make, slug) in onnx_files.BROKEN.items():
        yield Case("protobuf", name, "network", make, slug)


def _tensors() -> Iterator[Case]:
    """Safetensors, as weights and as a dataset: what does not look like it at all is unrecognised."""
    for name, (make, slug) in tensors.HOSTILE.items():
        for kind in ("weights", "dataset"):
            looks = name not in ("header is a list",)
            yield Case("safetensors", name, kind, make, slug if looks else "unrecognised-format")


def _sets() -> Iterator[Case]:
    yield Case("dataset", "sound", "dataset", sets.sound, "read")
    for name, (make, slug, pointer) in sets.SETS.items():
        yield Case("dataset", name, "dataset", make, slug, pointer)


def main() -> None:
    """Send every case through a sandboxed child and print what it cost."""
    from tests.security.gauge import Gauge

    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--json", action="store_true", help="one JSON document instead of a table")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, Gauge(Path(folder)) as gauge:
        found = [(case, gauge.measure(case)) for case in cases()]
    wrong = [case for case, cost in found if cost.slug != case.slug]
    if asked.json:
        rows = [{"case": str(case), "expected": case.slug, **asdict(cost)} for case, cost in found]
        print(json.dumps({"idle_bytes": gauge.idle, "executed": marker().exists(), "cases": rows}, indent=2))
    else:
        for case, cost in found:
            print(f"{cost.slug:28}{cost.seconds * 1e3:7.0f} ms {cost.peak_bytes / 2**20:7.1f} MiB  {case}")
        refused = [cost for case, cost in found if case.slug != "read"]
        slowest, largest = max(cost.seconds for cost in refused), max(cost.peak_bytes for cost in refused)
        print(
            f"{len(refused)} refused, at most {slowest * 1e3:.0f} ms and {largest / 2**20:.1f} MiB over an idle child; "
            f"executed: {marker().exists()}; wrong answers: {len(wrong)}"
        )
    sys.exit(bool(wrong) or marker().exists())


if __name__ == "__main__":
    main()

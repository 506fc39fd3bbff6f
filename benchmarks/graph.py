"""Reading against file size, slicing against depth: time, memory and how both grow."""

from __future__ import annotations

import gc
import io
import json
import math
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from benchmarks.cells import cell

MEGABYTES = (2, 10, 50, 200)
FORMATS = ("pt2", "onnx")
DEPTHS = (20, 56, 110)
ROUNDS = 15
READS = 3


class Stack(nn.Module):
    """Convolutions of one width one after the other: a file of any size from few nodes."""

    def __init__(self, megabytes: float, width: int = 256) -> None:
        super().__init__()
        count = max(1, round(megabytes * 2**20 / (4 * 9 * width**2)))
        self.stem, self.head = nn.Conv2d(3, width, 3, padding=1), nn.Linear(width, 10)
        self.body = nn.Sequential(*(nn.Conv2d(width, width, 3, padding=1) for _ in range(count)))

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.head(self.body(self.stem(x)).mean((2, 3)))
        return y


class _Block(nn.Module):
    def __init__(self, cin: int, cout: int, stride: int) -> None:
        super().__init__()
        self.a, self.norm_a = nn.Conv2d(cin, cout, 3, stride, 1, bias=False), nn.BatchNorm2d(cout)
        self.b, self.norm_b = nn.Conv2d(cout, cout, 3, 1, 1, bias=False), nn.BatchNorm2d(cout)
        self.skip = nn.Conv2d(cin, cout, 1, stride) if stride != 1 or cin != cout else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm_b(self.b(torch.relu(self.norm_a(self.a(x)))))
        return torch.relu(y + self.skip(x))


class ResNet(nn.Module):
    """The CIFAR ResNet of a depth 6n + 2 (He et al. 2015), widths 16, 32, 64."""

    def __init__(self, depth: int) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16)
        blocks, cin = [], 16
        for stage, width in enumerate((16, 32, 64)):
            for index in range((depth - 2) // 6):
                blocks.append(_Block(cin, width, 2 if stage and index == 0 else 1))
                cin = width
        self.blocks, self.head = nn.Sequential(*blocks), nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.blocks(torch.relu(self.norm(self.stem(x))))
        y: Tensor = self.head(x.mean((2, 3)))
        return y


def archive(net: nn.Module, side: int) -> bytes:
    """Return torch.export's archive of a network for square pictures."""
    buffer = io.BytesIO()
    shapes = ({0: torch.export.Dim("batch")},)
    torch.export.save(torch.export.export(net.eval(), (torch.randn(2, 3, side, side),), dynamic_shapes=shapes), buffer)
    return buffer.getvalue()


def run() -> None:
    """Measure and print both tables."""
    torch.set_num_threads(1)
    readings = {
        (kind, size): cell(f"graph-read-{kind}-{size}", lambda k=kind, s=size: measure_reading(k, s))  # type: ignore[misc]
        for kind in FORMATS
        for size in MEGABYTES
    }
    slicings = {depth: cell(f"graph-slice-{depth}", lambda d=depth: measure_slicing(d)) for depth in DEPTHS}  # type: ignore[misc]
    _print_readings(readings)
    _print_slicings(slicings)


def measure_reading(kind: str, megabytes: int) -> dict[str, Any]:
    """Read a file in fresh processes: least seconds, least growth of the peak over the idle process."""
    with tempfile.TemporaryDirectory() as folder:
        file, small = Path(folder) / f"network.{kind}", Path(folder) / f"small.{kind}"
        file.write_bytes(_file(kind, megabytes))
        small.write_bytes(_file(kind, 1))
        command = [sys.executable, "-m", "benchmarks.graph", kind, str(file), str(small)]
        runs = [json.loads(subprocess.run(command, check=True, capture_output=True).stdout) for _ in range(READS)]
        size = file.stat().st_size / 2**20
    return {
        "file_mib": size,
        "seconds": min(item["seconds"] for item in runs),
        "peak_over_idle_mib": min(item["peak_over_idle_mib"] for item in runs),
    }


def _file(kind: str, megabytes: int) -> bytes:
    from worker.graph.read import read_network
    from worker.graph.write_onnx import write_float

    data = archive(Stack(megabytes), 8)
    return data if kind == "pt2" else write_float(read_network(data))


def read_once(kind: str, file: Path, small: Path) -> dict[str, float]:
    """Read a file that is already in memory; return seconds and growth of the peak resident size in MiB."""
    from worker.graph.read import read_network

    read_network(small.read_bytes(), kind)  # what a first call loads is not the file's
    data = file.read_bytes()
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    idle, start = _memory("VmRSS"), time.perf_counter()
    network = read_network(data, kind)
    seconds = time.perf_counter() - start
    assert sum(parameter.numel() for parameter in network.parameters()) * 4 > 0.9 * len(data)
    return {"seconds": seconds, "peak_over_idle_mib": _memory("VmHWM") - idle}


def _memory(field: str) -> float:
    """Return a line of this process's status in MiB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(field)).split()[1]) / 1024


def measure_slicing(depth: int) -> dict[str, Any]:
    """Time reading, grouping and slicing of a ResNet at random halves of its channels (least of several rounds)."""
    from worker.graph.groups import channel_plan, weighted_layers
    from worker.graph.read import read_network
    from worker.graph.rewrite import fold_batchnorm
    from worker.graph.slicing import Slicer

    data = archive(ResNet(depth), 32)
    folded = fold_batchnorm(read_network(data))
    slicer, rng = Slicer(folded, channel_plan(folded)), random.Random(0)
    free = [group for group in slicer.plan.groups if group.frozen is None]
    kept = {g.id: sorted(rng.sample(range(g.channels), g.channels // 2)) for g in free}
    slicer.sliced(kept)
    return {
        "layers": len(weighted_layers(folded)),
        "groups": len(free),
        "read_ms": _least(lambda: read_network(data), 3),
        "plan_ms": _least(lambda: channel_plan(folded), 3),
        "slice_ms": _least(lambda: slicer.sliced(kept), ROUNDS),
    }


def _least(call: Callable[[], Any], rounds: int) -> float:
    times = []
    for _ in range(rounds):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return 1e3 * min(times)


def growth(sizes: Sequence[float], values: Sequence[float]) -> float:
    """Return the exponent k of value ~ size^k, from the first to the last."""
    return math.log(values[-1] / values[0]) / math.log(sizes[-1] / sizes[0])


def _print_readings(found: dict[tuple[str, int], dict[str, Any]]) -> None:
    table = Table("format", "file MiB", "seconds", "MiB/s", "peak over idle MiB", "of the file", title="reading")
    for (kind, _), item in found.items():
        size, seconds, peak = item["file_mib"], item["seconds"], item["peak_over_idle_mib"]
        figures = [f"{size:.1f}", f"{seconds:.3f}", f"{size / seconds:.0f}", f"{peak:.0f}", f"{peak / size:.2f}"]
        table.add_row(kind, *figures)
    Console().print(table)
    for kind in FORMATS:
        rows = [found[(kind, size)] for size in MEGABYTES]
        sizes = [row["file_mib"] for row in rows]
        time_growth = growth(sizes, [row["seconds"] for row in rows])
        memory_growth = growth(sizes, [row["peak_over_idle_mib"] for row in rows])
        print(f"{kind}: time grows as size^{time_growth:.2f}, memory as size^{memory_growth:.2f}")


def _print_slicings(found: dict[int, dict[str, Any]]) -> None:
    columns = ("layers", "groups", "read_ms", "plan_ms", "slice_ms")
    table = Table("network", *columns, "slice us/layer", title="slicing at half width")
    for depth, item in found.items():
        each = f"{1e3 * item['slice_ms'] / item['layers']:.0f}"
        figures = [f"{item[c]:.2f}" if c.endswith("ms") else str(item[c]) for c in columns]
        table.add_row(f"ResNet-{depth}", *figures, each)
    Console().print(table)
    layers = [item["layers"] for item in found.values()]
    for column in ("read_ms", "plan_ms", "slice_ms"):
        print(f"{column} grows as layers^{growth(layers, [item[column] for item in found.values()]):.2f}")


if __name__ == "__main__":
    print(json.dumps(read_once(sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]))))

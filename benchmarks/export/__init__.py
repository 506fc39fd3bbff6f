"""Exported files: speed, size, and how exactly they compute what was simulated: `python -m benchmarks export`."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table

from benchmarks.cells import cell
from benchmarks.export import exact, peers, speed, zoo
from benchmarks.networks import NETWORKS, available

VERDICTS = {True: "[green]holds[/green]", False: "[red]missed[/red]", None: "printed"}


def run() -> None:
    """Measure what has no result yet and print the tables, with what is claimed of each."""
    if not available():
        print("export: the reference data folder (../shared/data) is absent; nothing measured")
        return
    _print_speed()
    _print_peers()
    _print_exact()
    _print_zoo()


def _print_speed() -> None:
    found = cell("export-speed", speed.measure)
    table = Table("variant", "ms", "times as fast", "bytes", "weights over packed", "file over packed", "kernels")
    for name, item in found["variants"].items():
        held = ["-", "-"]
        if name in speed.VARIANTS:
            held = [f"{item['weights_over_packed']:.3f}", f"{item['overhead'] / 1e3:.0f} kB"]
        kernels = ", ".join(f"{count} {op}" for op, count in item["kernels"].items())
        table.add_row(name, f"{item['ms']:.3f}", f"{item['speedup']:.2f}", str(item["bytes"]), *held, kernels)
    console = Console()
    console.print(f"{found['parameters']:,} parameters, one thread, batch 1; {found['processor']}")
    console.print(table)
    for claim, holds in speed.claims(found):
        console.print(f"{VERDICTS[holds]}  {claim}")


def _print_peers() -> None:
    table = Table("network", "ours W8A8", "onnxruntime's static W8A8", "float weights with encodings")
    smaller = True
    for name in NETWORKS:
        found = cell(f"export-peers-{name}", lambda n=name: peers.measure(n))  # type: ignore[misc]
        table.add_row(name, *(f"{found[key]:,}" for key in ("ours", "onnxruntime", "float")))
        smaller &= found["ours"] < min(found["onnxruntime"], found["float"] / 2)
    console = Console()
    console.print(table)
    console.print(f"{VERDICTS[smaller]}  smaller than onnxruntime's file, under half of a file of float weights")


def _print_exact() -> None:
    table = Table("network", "assignment", "simulated", "in the runtime", "gap, points", "top-1 agreement", "SQNR, dB")
    holds = True
    for name in NETWORKS:
        found = cell(f"export-exact-{name}", lambda n=name: exact.measure(n))  # type: ignore[misc]
        for label, item in found["assignments"].items():
            gap = 100 * abs(item["simulated"] - item["exported"])
            holds &= gap <= exact.MAX_GAP and item["top1"] >= exact.MIN_TOP1
            figures = [f"{100 * item['simulated']:.2f}", f"{100 * item['exported']:.2f}", f"{gap:.2f}"]
            table.add_row(name, label, *figures, f"{100 * item['top1']:.2f} %", f"{item['sqnr_db']:.1f}")
    console = Console()
    console.print(table)
    said = f"within {exact.MAX_GAP} points, top-1 agreement of at least {100 * exact.MIN_TOP1} % on 10,000 pictures"
    console.print(f"{VERDICTS[holds]}  {said}")


def _print_zoo() -> None:
    table = Table("network", "assignments", "least SQNR, dB", "least top-1", "below")
    below = 0
    for name in zoo.names():
        found = cell(f"export-zoo-{name}", lambda n=name: zoo.measure(n))  # type: ignore[misc]
        low = [item for item in found["assignments"] if zoo.is_below(item)]
        below += len(low)
        least = {key: min(item[key] for item in found["assignments"]) for key in ("sqnr_db", "top1")}
        count = str(len(found["assignments"]))
        table.add_row(name, count, f"{least['sqnr_db']:.1f}", f"{100 * least['top1']:.2f} %", str(len(low)))
    console = Console()
    console.print(table)
    said = f"SQNR of at least {zoo.MIN_SQNR_DB:.0f} dB, top-1 agreement of at least {100 * zoo.MIN_TOP1:.0f} %"
    console.print(f"{VERDICTS[below == 0]}  {said}: {below} below")

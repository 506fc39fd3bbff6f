"""Exported files: speed, size, and how exactly they compute what was simulated: `python -m benchmarks export`."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.cells import Measure, fill
from benchmarks.export import exact, opsets, peers, second, speed, zoo
from benchmarks.networks import NETWORKS, available
from worker.cache import MEASUREMENT_VERSION
from worker.export.second_opinion import is_available

CODE = f"measurement {MEASUREMENT_VERSION}, files 3"
"""Results of another version are measured again; raise the second number where files are written otherwise."""
VERDICTS = {True: "[green]holds[/green]", False: "[red]missed[/red]", None: "printed"}


def run() -> None:
    """Measure what has no result yet and print the tables, with what is claimed of each."""
    if not available():
        print("export: the reference data folder (../shared/data) is absent; networks of the zoo alone are measured")
    found = fill(cells(available()), "export cells", CODE)
    if "export-speed" in found:
        _print_speed(found["export-speed"])
    trained = {part: _by_network(found, f"export-{part}-") for part in ("peers", "exact", "opsets", "second", "zoo")}
    _print_peers(trained["peers"])
    _print_exact(trained["exact"])
    _print_opsets(trained["opsets"])
    _print_second(trained["second"])
    _print_zoo(trained["zoo"])
    _print_kernels(trained["zoo"])


def cells(with_data: bool) -> dict[str, Measure]:
    """Return the cells by name, the timed one first; without the reference data those of random networks."""
    found: dict[str, Measure] = {"export-speed": speed.measure} if with_data else {}
    for name in NETWORKS if with_data else ():
        found[f"export-peers-{name}"] = partial(peers.measure, name)
        found[f"export-exact-{name}"] = partial(exact.measure, name)
        found[f"export-opsets-{name}"] = partial(opsets.measure, name)
        if is_available():
            found[f"export-second-{name}"] = partial(second.measure, name)
    return found | {f"export-zoo-{name}": partial(zoo.measure, name) for name in zoo.names()}


def _by_network(found: Mapping[str, Any], start: str) -> dict[str, Any]:
    return {name.removeprefix(start): item for name, item in found.items() if name.startswith(start)}


def _print_speed(found: Mapping[str, Any]) -> None:
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


def _print_peers(results: Mapping[str, Any]) -> None:
    columns = ("ours W8A8", "onnxruntime's static W8A8", "float file", "float weights alone", "ours over those")
    table = Table("network", *columns)
    for name, found in results.items():
        sizes = [f"{found[key]:,}" for key in ("ours", "onnxruntime", "float", "float_weights")]
        table.add_row(name, *sizes, f"{found['ours'] / found['float_weights']:.3f}")
    console = Console()
    console.print(table)
    smaller = all(found["ours"] < found["onnxruntime"] for found in results.values())
    fraction = all(found["ours"] < peers.FRACTION * found["float_weights"] for found in results.values())
    console.print(f"{VERDICTS[smaller]}  smaller than onnxruntime's file")
    said = "which exports of AIMET and ModelOpt hold (neither is run here)"
    console.print(f"{VERDICTS[fraction]}  below a third of the float weights alone, {said}")


def _print_exact(results: Mapping[str, Any]) -> None:
    table = Table("network", "assignment", "simulated", "in the runtime", "gap, points", "top-1 agreement", "SQNR, dB")
    holds = True
    for name, found in results.items():
        for label, item in found["assignments"].items():
            gap = 100 * abs(item["simulated"] - item["exported"])
            holds &= gap <= exact.MAX_GAP and item["top1"] >= exact.MIN_TOP1
            figures = [f"{100 * item['simulated']:.2f}", f"{100 * item['exported']:.2f}", f"{gap:.2f}"]
            table.add_row(name, label, *figures, f"{100 * item['top1']:.2f} %", f"{item['sqnr_db']:.1f}")
    console = Console()
    console.print(table)
    said = f"within {exact.MAX_GAP} points, top-1 agreement of at least {100 * exact.MIN_TOP1} % on 10,000 pictures"
    console.print(f"{VERDICTS[holds]}  {said}")


def _print_opsets(results: Mapping[str, Any]) -> None:
    table = Table("network", "widths", "opset", "bytes", "load, ms", "same bits", "same kernels")
    same = True
    for name, found in results.items():
        for widths in opsets.WIDTHS:
            for opset, item in found[f"w{widths}a8"].items():
                same &= item["same_bits"] and item["same_kernels"]
                said = [str(item["same_bits"]), str(item["same_kernels"])]
                table.add_row(name, f"w{widths}a8", opset, f"{item['bytes']:,}", f"{item['load_ms']:.1f}", *said)
    console = Console()
    console.print(table)
    console.print(f"{VERDICTS[same]}  every opset: the same answers bit for bit, by the same kernels")


def _print_second(results: Mapping[str, Any]) -> None:
    if not results:
        print("export: openvino is not installed; no second runtime is asked")
        return
    table = Table(
        "network", "assignment", "simulated", "in OpenVINO", "top-1 agreement", "SQNR, dB", "ONNX Runtime's, dB"
    )
    for name, found in results.items():
        for label, item in found["assignments"].items():
            other, usual = item["openvino"], item["onnxruntime"]
            shares = [f"{100 * value:.2f}" for value in (item["simulated"], other["accuracy"], other["top1"])]
            table.add_row(name, label, *shares, f"{other['sqnr_db']:.1f}", f"{usual['sqnr_db']:.1f}")
    Console().print(table)


def _print_zoo(results: Mapping[str, Any]) -> None:
    table = Table("network", "assignments", "least SQNR, dB", "least top-1", "below")
    below = 0
    for name, found in results.items():
        low = [item for item in found["assignments"] if zoo.is_below(item)]
        below += len(low)
        least = {key: min(item[key] for item in found["assignments"]) for key in ("sqnr_db", "top1")}
        count = str(len(found["assignments"]))
        table.add_row(name, count, f"{least['sqnr_db']:.1f}", f"{100 * least['top1']:.2f} %", str(len(low)))
    console = Console()
    console.print(table)
    said = f"SQNR of at least {zoo.MIN_SQNR_DB:.0f} dB, top-1 agreement of at least {100 * zoo.MIN_TOP1:.0f} %"
    console.print(f"{VERDICTS[below == 0]}  {said}: {below} below")


def _print_kernels(results: Mapping[str, Any]) -> None:
    """Print what each kernel of the runtime did otherwise than the simulation from the same codes."""
    merged: dict[str, dict[str, float]] = {}
    for found in results.values():
        for item in found["assignments"]:
            zoo.merge(merged, item["kernels"])
    table = Table("kernel", "operation", "sites", "largest share of codes", "by steps")
    for key, item in sorted(merged.items()):
        table.add_row(*key.split("/"), f"{item['sites']:.0f}", f"{item['share']:.2e}", f"{item['steps']:.0f}")
    console = Console()
    console.print(table)
    for kind, (share, steps) in zoo.ALLOWED.items():
        holds = all(zoo.keeps(key, item) for key, item in merged.items() if key.startswith(f"{kind}/"))
        said = f"at most {100 * share:g} % of a site's codes differ, by {steps} step"
        console.print(f"{VERDICTS[holds]}  {kind}: {said if steps else 'every code is equal'}")

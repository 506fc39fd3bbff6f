"""docs/networks.md, printed from what this machine measures: `python -m tests.zoo > docs/networks.md`."""

from __future__ import annotations

import random
import sys
from collections.abc import Iterator, Sequence

from tests.zoo import ZOO
from tests.zoo.masking import masked
from tests.zoo.oracle import DIFFERENCES, differing
from tests.zoo.running import difference, folded, onnx_outputs, outputs
from tests.zoo.sources import SOURCES, CannotExport, Source, exported
from worker.graph.read import read_network
from worker.graph.slicing import Slicer
from worker.graph.write_onnx import write_float

ASSIGNMENTS = 8

HEAD = """# Networks that are read, pruned and written

Printed by `make docs`; do not edit. Small networks made by code, one for each family, stand for what users bring
(`tests/zoo`). The tests check the same on every run.

## Reading

Largest difference to the source network, relative to its largest output, at batch 1 and 7. `pt2` is torch.export's
archive, `script` torch's TorchScript exporter, `dynamo` its newer exporter, the number the opset; `fixed` is a file
made for one picture instead of any number. A dash: the exporter itself can't write that file.
"""

GROUPS = """
## Channel groups and removal

Channels that can be removed, in how many groups; channels that stay, and why; the largest difference, over
{count} random assignments, between the sliced network and the whole one with the removed channels emptied, and between
torch and ONNX Runtime on the sliced network. The last column compares the groups, channel by channel, with
Torch-Pruning 1.6.1 (convolutional networks only; it has no rule for attention heads and recurrent layers).
"""


def page() -> Iterator[str]:
    """Yield the page's lines."""
    yield HEAD
    yield from _table(["network", *(str(source) for source in SOURCES)], _readings())
    yield GROUPS.format(count=ASSIGNMENTS)
    head = ["network", "groups", "channels", "stay", "sliced", "in ONNX Runtime", "Torch-Pruning"]
    yield from _table(head, (_removal(name) for name in _progress("removal")))
    yield "\nDifferences to Torch-Pruning:\n"
    for name, (layers, reason) in DIFFERENCES.items():
        yield f"- `{name}` ({', '.join(sorted(layers))}): {reason}."


def _table(head: Sequence[str], rows: Iterator[list[str]]) -> Iterator[str]:
    yield "| " + " | ".join(head) + " |"
    yield "|" + " --- |" * len(head)
    for row in rows:
        yield "| " + " | ".join(row) + " |"


def _progress(what: str) -> Iterator[str]:
    for index, name in enumerate(ZOO, 1):
        print(f"\r{what} {index}/{len(ZOO)} {name:20}", end="", file=sys.stderr, flush=True)
        yield name
    print(file=sys.stderr)


def _readings() -> Iterator[list[str]]:
    for name in _progress("reading"):
        yield [f"`{name}`", *(_reading(name, source) for source in SOURCES)]


def _reading(name: str, source: Source) -> str:
    try:
        data = exported(name, source)
    except CannotExport:
        return "-"
    entry, module = ZOO[name], read_network(data)
    net = entry.network()
    return _figure(difference(outputs(module, x), outputs(net, x)) for x in (entry.inputs(1), entry.inputs(7)))


def _figure(values: Iterator[float]) -> str:
    largest = max(values)
    return "0" if largest == 0 else f"{largest:.0e}"


def _removal(name: str) -> list[str]:
    entry, (module, plan) = ZOO[name], folded(name)
    free = [group for group in plan.groups if group.frozen is None]
    stay = [f"{group.channels} ({group.frozen})" for group in plan.groups if group.frozen is not None]
    slicer, rng, x = Slicer(module, plan), random.Random(name), entry.inputs(3)
    sliced, written = [], []
    for _ in range(ASSIGNMENTS):
        kept = {g.id: sorted(rng.sample(range(g.channels), rng.randint(1, g.channels))) for g in free}
        network = slicer.sliced(kept)
        sliced.append(difference(outputs(network, x), outputs(masked(module, plan, kept, entry), x)))
        written.append(difference(onnx_outputs(write_float(network), x), outputs(network, x)))
    oracle = "" if not entry.is_cnn else f"{len(layers)} layers differ" if (layers := differing(name)) else "equal"
    channels = sum(group.channels for group in free)
    figures = [_figure(iter(sliced)), _figure(iter(written))]
    return [f"`{name}`", str(len(free)), str(channels), "; ".join(stay), *figures, oracle]

"""Writing a canonical graph as a torch.export archive with a dynamic batch: stored entries, fixed stamps, no pickle.

`torch.export.save` writes the program. It also puts its sample inputs in as a pickle, the places of our own source
files, and an identity; those are left out here, so equal networks give equal bytes under one version of torch.
`torch.export.load` reads an empty entry of sample inputs as "none were given".
"""

from __future__ import annotations

import copy
import io
import warnings
import zipfile

import torch
from torch import fx

from worker.files import stored_zip
from worker.graph.extents import inputs_of

EXAMPLES = 2  # rows: torch.export takes a batch of one for a constant
SAMPLES = "data/sample_inputs/"
IDENTITY = ".data/serialization_id"
DROPPED = ("stack_trace", "nn_module_stack", "torch_fn", "custom", "source_fn_stack", "from_node")


def write_pt2(module: fx.GraphModule) -> bytes:
    """Return a float canonical graph as a `.pt2` file; equal graphs give equal bytes.

    Raises what torch.export raises for a graph that it can't trace with a batch of any size.
    """
    examples = tuple(item.example(EXAMPLES) for item in inputs_of(module))
    shapes = tuple({0: torch.export.Dim("batch")} for _ in examples)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what torch's own modules say to each other
        program = torch.export.export(_plain(module), examples, dynamic_shapes=shapes, strict=False)
        _forget(program.graph)
        buffer = io.BytesIO()
        torch.export.save(program, buffer)
    return _rewritten(buffer.getvalue())


def _plain(module: fx.GraphModule) -> fx.GraphModule:
    """Return a copy whose tensors lie in order and share nothing: convolutions may lie channels last here."""
    clone = copy.deepcopy(module)
    for tensor in (*clone.parameters(), *clone.buffers()):
        tensor.data = tensor.detach().clone(memory_format=torch.contiguous_format)
    return clone


def _forget(graph: fx.Graph) -> None:
    """Drop from a traced program what tells of this machine: where the code that was traced lies."""
    for node in graph.nodes:
        for key in DROPPED:
            node.meta.pop(key, None)


def _rewritten(data: bytes) -> bytes:
    """Return an archive without what differs from run to run or would have to be unpickled."""
    with zipfile.ZipFile(io.BytesIO(data)) as found:
        names = [name for name in found.namelist() if not name.endswith(IDENTITY)]
        return stored_zip((name, b"" if SAMPLES in name else found.read(name)) for name in names)

"""Reading a checkpoint as docs/checkpoint-format.md says, with numpy alone: its own program is run."""

from __future__ import annotations

import re
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from numpy.typing import NDArray
from torch import fx, nn

from worker.graph.leaves import Recurrent
from worker.graph.ops.parametric import as_stored

DOC = Path(__file__).resolve().parents[3] / "docs" / "checkpoint-format.md"
Arrays = dict[str, NDArray[Any]]


@dataclass(frozen=True)
class Read:
    """What the document's program finds, by layer; `integers` has no entry for a float layer."""

    weights: Arrays
    integers: Arrays
    biases: Arrays


def program() -> str:
    """Return the program of the document."""
    (found,) = re.findall(r"```python\n(.*?)```", DOC.read_text(), re.S)
    return str(found)


def read_by_the_document(path: Path) -> Read:
    """Run the document's program on a file, in this process. Raises what it raises."""
    held: dict[str, Any] = {}
    with patch.object(sys, "argv", ["reader", str(path)]):
        exec(program(), held)
    return Read(held["weights"], held["integers"], held["biases"])


def with_weights(module: fx.GraphModule, read: Read) -> fx.GraphModule:
    """Return a float network with the weights and biases that were read in place of its own."""
    with torch.no_grad():
        for name, weight in read.weights.items():
            node, _, which = name.partition(".")
            leaf: Any = module.get_submodule(node)
            bias = torch.from_numpy(np.array(read.biases[name]))
            if isinstance(leaf, Recurrent):
                getattr(leaf.core, which).copy_(torch.from_numpy(weight))
                getattr(leaf.core, which.replace("weight", "bias")).copy_(bias)
            else:
                leaf.weight.copy_(as_stored(leaf, torch.from_numpy(weight)))
                leaf.bias = nn.Parameter(bias)
    return module

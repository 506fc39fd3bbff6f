"""Print docs/networks.md."""

import contextlib
import logging
import os
import sys
from collections.abc import Iterator
from typing import TextIO

from tests.zoo.page import page


@contextlib.contextmanager
def silent_stdout() -> Iterator[TextIO]:
    """Keep what exporters print in C++ away from the page: hand out the real stdout, point descriptor 1 at nothing."""
    real = os.fdopen(os.dup(1), "w")
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    yield real
    real.flush()


logging.disable(logging.CRITICAL)
with silent_stdout() as out:
    for line in page():
        print(line, file=out)
sys.stderr.write("done\n")

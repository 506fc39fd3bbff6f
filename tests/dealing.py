"""How `make test` deals the tests out to its processes: by file, the longest first, what is timed one after another."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from xdist.scheduler.loadscope import LoadScopeScheduling

TIMED = (
    "tests/reliability/test_agent.py",
    "tests/reliability/test_measured_agent.py",
    "tests/worker/test_measured.py",
    "tests/worker/hardware/test_calibrate.py",
    "tests/worker/hardware/test_measure.py",
    "tests/worker/hardware/test_measuring.py",
)
"""Files whose tests time networks on a core of their own, which is the same for all: they share one process."""

ZOO = tuple(
    f"tests/zoo/test_{part}.py" for part in ("compressing", "memory", "oracle", "reading", "slicing", "writing")
)
FOLDERS = ("tests/app/store/", "tests/worker/graph/contracts/")

LONGEST = (
    "tests/examples",
    "tests/e2e",
    "timed",
    "tests/worker/graph/contracts",
    "tests/reliability",
    "tests/worker/test_runner.py",
    "tests/worker/test_crew.py",
    "tests/worker/test_warm.py",
    "tests/zoo",
    "tests/worker/graph",
    "tests/worker/export",
    "tests/worker",
    "tests/security",
)
"""Units of work by how their names begin, the longest first: no process is left alone with one at the end."""


def unit(nodeid: str) -> str:
    """Return what a test is dealt out with.

    Of the zoo, all tests of a network: its exports are made once. So are the databases of the store and the files of
    the contracts, each a folder.
    """
    file, _, rest = nodeid.partition("::")
    case = rest.partition("[")[2].rstrip("]")
    if file in TIMED:
        return "timed"
    if file in ZOO:
        return f"tests/zoo/{case.split('-')[0]}"
    return next((folder for folder in FOLDERS if file.startswith(folder)), file)


def place(nodeid: str) -> int:
    """Return a test's place in the order of dealing."""
    name = unit(nodeid)
    return next((index for index, start in enumerate(LONGEST) if name.startswith(start)), len(LONGEST))


class Dealing(LoadScopeScheduling):
    """Hands every process a unit at a time, in order."""

    def __init__(self, config: pytest.Config, log: object = None) -> None:
        config.option.loadscopereorder = False  # the number of tests says little about how long they take
        super().__init__(config, log)

    def _split_scope(self, nodeid: str) -> str:
        return unit(nodeid)


def ordered(items: Sequence[pytest.Item]) -> list[pytest.Item]:
    """Return the tests in the order of dealing."""
    return sorted(items, key=lambda item: place(item.nodeid))

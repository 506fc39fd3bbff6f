"""Shared fixtures: where the optional reference data lies; and how tests are dealt out to processes."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: object) -> object:
    """Deal the tests out to several processes."""
    from tests.dealing import Dealing

    return Dealing(config, log)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Put the longest tests first where they are dealt out."""
    if hasattr(config, "workerinput"):
        from tests.dealing import ordered

        items[:] = ordered(items)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Return the folder with reference datasets and checkpoints, or skip where it is absent."""
    folder = Path(os.environ.get("TIGHTFIT_SHARED", ROOT.parent / "shared")) / "data"
    if not (folder / "models" / "resnet8_cifar10.onnx").exists():
        pytest.skip("the reference data folder (../shared/data) is absent")
    return folder


@pytest.fixture(scope="session")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with net.pt2 and digits.npz (1,097 rows the network has not seen, integers 0..16)."""
    from tests.worker.digit_files import write_files

    return write_files(tmp_path_factory.mktemp("files"))


@pytest.fixture(scope="session")
def picture(files: Path) -> dict[str, Any]:
    """Return the picture of net.pt2, as a sandboxed child draws it."""
    from worker.sandbox import Child

    with Child() as child:
        graph: dict[str, Any] = child.call("inspect", {"path": str(files / "net.pt2")}, 120)["graph"]
        return graph

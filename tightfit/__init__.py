"""tightfit's import package: load a compressed checkpoint, or talk to the service.

`tightfit.load(path, mode)` needs torch (`pip install 'tightfit[worker]'`); `tightfit.Client` does not. What is here is
imported on first use, so that `import tightfit` costs nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from app.client import Client
    from worker.export.archive import CheckpointRefused
    from worker.export.checkpoint import load

__all__ = ["CheckpointRefused", "Client", "load"]


def __getattr__(name: str) -> object:
    if name == "load":
        from worker.export.checkpoint import load

        return load
    if name == "CheckpointRefused":
        from worker.export.archive import CheckpointRefused

        return CheckpointRefused
    if name == "Client":
        from app.client import Client

        return Client
    raise AttributeError(f"module 'tightfit' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)

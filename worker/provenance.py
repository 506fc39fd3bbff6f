"""What a search is made with, so that it can be made again: seed, digests of all that goes in, versions."""

from __future__ import annotations

import hashlib
import json
import platform
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from worker.cache import MEASUREMENT_VERSION, Cache
from worker.job import Job

Json = dict[str, Any]
PACKAGES = ("tightfit", "torch", "onnx", "onnxruntime", "optuna", "numpy", "scipy")


def provenance(job: Job) -> Json:
    """Return seed, sampler, processor, digests of network, weights, data and device, evaluations' context, versions.

    Searches with the same context share their evaluations.
    """
    device = json.dumps(job.goal.device.to_json(), sort_keys=True)
    return {
        "seed": job.settings.seed,
        "sampler": job.settings.sampler,
        "processor": job.processor,
        "model_sha256": job.names.get("model_sha256"),
        "weights_sha256": job.names.get("weights_sha256"),
        "datasets": job.names.get("datasets"),
        "device_sha256": hashlib.sha256(device.encode()).hexdigest(),
        "context": Cache(job).context,
        "measurement_version": MEASUREMENT_VERSION,
        "versions": versions(),
    }


def versions() -> dict[str, str | None]:
    """Return the version of Python and of every package that results depend on (None: not installed)."""
    return {"python": platform.python_version(), **{name: _version(name) for name in PACKAGES}}


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None

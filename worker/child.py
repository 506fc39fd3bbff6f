"""Inside the sandbox: `python -m worker.child LIMITS` reads JSON requests from stdin and answers on stdout."""

from __future__ import annotations

import errno
import json
import os
import resource
import shutil
import signal
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from worker.confine import forbid_processes
from worker.processor import CUDA
from worker.sandbox import FOLDER_PREFIX

if TYPE_CHECKING:  # torch is imported once the limits stand
    import torch

    from app.domain.space import Assignment
    from app.domain.zip_laws import Buffer
    from worker.data import Dataset, Role, RoleData
    from worker.hardware.calibrate import Planned
    from worker.methods.serve import Serving
    from worker.search.evaluate import Evaluator, Opened

Params = dict[str, Any]
CPU_GRACE_S = 5
WATCH_S = 1.0
SPENT = (errno.EFBIG, errno.ENOSPC, errno.EDQUOT, errno.EMFILE, errno.EAGAIN)


@dataclass
class Session:
    """What the child holds between calls: one opened network with its data, one training."""

    network: Opened | None = None
    evaluator: Evaluator | None = None
    calibrated: tuple[dict[str, Opened], tuple[Planned, ...]] | None = None
    training: Serving | None = None


class Refused(Exception):
    """A refusal on its way out."""

    def __init__(self, slug: str, detail: str, errors: list[dict[str, Any]]) -> None:
        super().__init__(detail)
        self.slug, self.detail, self.errors = slug, detail, errors


def inspect(session: Session, params: Params) -> Params:
    """Read a network, with the new weights where some are named; return its format, picture and warnings."""
    from worker.files import mapped
    from worker.graph.read import sniff
    from worker.search.evaluate import open_network

    data = mapped(Path(params["path"]))
    found = sniff(data)
    opened = open_network(data, params.get("format") or found, _weights(params))
    if not opened.graph.layers:
        raise Refused("nothing-to-compress", "the network has no convolution or linear layer", [])
    return {"format": found, "graph": opened.graph.to_json(), "warnings": _warnings(opened)}


def _warnings(opened: Opened) -> list[str]:
    """Say where numbers are not finite: in the weights, and then in the outputs for inputs of zeros and of ones too."""
    import torch

    from worker.graph.extents import inputs_of

    if all(torch.isfinite(item).all() for item in opened.folded.parameters()):
        return []
    found = ["non-finite-weights"]
    for fill in (torch.zeros_like, torch.ones_like):
        inputs = [fill(item.example()) for item in inputs_of(opened.folded)]
        with torch.no_grad():
            outputs = opened.folded(*inputs)
        if not all(torch.isfinite(item).all() for item in (outputs if isinstance(outputs, tuple) else (outputs,))):
            return [*found, "non-finite-outputs"]
    return found


def inspect_dataset(session: Session, params: Params) -> Params:
    """Read a dataset and return its record."""
    return _dataset(params).info()


def processor(session: Session, params: Params) -> Params:
    """Return what trials would run on."""
    from worker.processor import chosen, name_of

    return {"processor": name_of(chosen(None))}


def open_(session: Session, params: Params) -> Params:
    """Open a network with its three roles on a device; return how many pictures each role has, and what trials run on.

    A `processor` is the kind they must run on.
    """
    from app.domain.device import DeviceProfile
    from worker.files import mapped
    from worker.processor import name_of
    from worker.search.evaluate import EvaluatorOptions, open_evaluator, open_network

    runs_on = _runs_on(params)
    network = open_network(mapped(Path(params["model"])), weights=_weights(params))
    data = _roles(params["datasets"], network)
    options = EvaluatorOptions(**params.get("options", {}))
    session.network = network
    session.evaluator = open_evaluator(network, data, DeviceProfile.from_json(params["device"]), options, runs_on)
    counts = {role: len(part) for role, part in data.items()}
    return {"pictures": counts, "processor": name_of(runs_on)}


def _runs_on(params: Params) -> torch.device:
    from worker.processor import chosen

    try:
        return chosen(params.get("processor"))
    except LookupError as error:
        raise Refused("processor-unavailable", str(error.args[0]), []) from error


def evaluate(session: Session, params: Params) -> Params:
    """Measure assignments, changes of a base where one is named; one that fails answers with its failure instead."""
    from app.domain.space import Assignment

    base = None if params.get("base") is None else Assignment.from_json(params["base"])
    return {"results": [_evaluated(_evaluator(session), item, base) for item in params["items"]]}


def train(session: Session, params: Params) -> Params:
    """Train one epoch of a method on a network; return the epoch, or how it failed.

    `folder` holds the state between epochs, which a later call goes on from, and behind the last one the network.
    """
    from worker.methods import serve

    _adopt(_evaluator(session), params)
    if session.training is None or session.training.key != serve.key_of(params):
        session.training = serve.opened(_evaluator(session), params)
    return session.training.epoch(params["last"])


def export(session: Session, params: Params) -> Params:
    """Export and verify one assignment into a folder; return the files and the report."""
    from app.domain.budget import Budget
    from app.domain.space import Assignment
    from worker.export.export import ExportRequest, export_all

    evaluator = _evaluator(session)
    _adopt(evaluator, params)
    assignment, repair = Assignment.from_json(params["assignment"]), params.get("repair") or "sequential"
    opset = _opset(params, assignment)
    request = ExportRequest(
        network=evaluator.compress(assignment, repair),
        graph=evaluator.graph,
        folded=evaluator.original,
        pruned=evaluator.pruned(assignment, repair),
        evaluation=evaluator.pictures("full"),
        device=evaluator.compressor.device,
        budget=Budget(params["limits"]),
        manifest={**params["manifest"], **evaluator.conditioned},
        measured=params.get("measured"),
        recipe={
            **params.get("origin", {}),
            **{name: params.get(name) for name in ("limits", "assignment", "measured")},
            "repair": repair,
            "record": params["manifest"],
            "opset": opset,
        },
        opset=opset,
        told=params.get("told"),
    )
    return export_all(request, Path(params["folder"])).to_json()


def write(session: Session, params: Params) -> Params:
    """Write assignments as ONNX files, as they would be delivered, into a folder; return the inputs' shapes and types.

    The whole float network is written as the float file.
    """
    from app.domain.space import Assignment
    from worker.export.onnx_qdq import write_qdq
    from worker.export.saturation import guards_pairs
    from worker.graph.write_onnx import write_float

    evaluator = _evaluator(session)
    saturating = guards_pairs(evaluator.compressor.device)
    for item in params["items"]:
        assignment = Assignment.from_json(item["assignment"])
        if evaluator.is_baseline(assignment):
            content = write_float(evaluator.original, _opset(params, assignment))
        else:
            compressed = evaluator.compress(assignment, item["repair"])
            content = write_qdq(compressed, saturating, _opset(params, assignment))
        (Path(params["folder"]) / item["id"]).write_bytes(content)
    row = evaluator.pictures("full").head(1).inputs
    return {"inputs": [[list(value.shape), str(value.numpy().dtype)] for value in row]}


def time_files(session: Session, params: Params) -> Params:
    """Time files that `write` wrote, against each other on this machine; return each one's latency."""
    from worker.hardware.measuring import Bench, LocalMeasurer

    folder = Path(params["folder"])
    benches = [Bench.told(name, (folder / name).read_bytes(), params["inputs"]) for name in params["files"]]
    return {name: found.to_json() for name, found in LocalMeasurer(params["rounds"]).time(benches).items()}


def plan_calibration(session: Session, params: Params) -> Params:
    """Read networks and write the files of a calibration's plan into a folder; return what is to be measured."""
    from worker.hardware.plans import opened, planned_files

    networks = opened(params["models"])
    planned, items = planned_files(networks, params, Path(params["folder"]))
    session.calibrated = (networks, planned)
    return {"items": items}


def fit_calibration(session: Session, params: Params) -> Params:
    """Fit the latency table of the planned calibration to what was measured."""
    from worker.hardware.plans import fitted

    if session.calibrated is None:
        raise Refused("invalid-request", "nothing is planned", [])
    return fitted(*session.calibrated, params)


METHODS: dict[str, Callable[[Session, Params], Params]] = {
    "inspect": inspect,
    "inspect_dataset": inspect_dataset,
    "processor": processor,
    "open": open_,
    "evaluate": evaluate,
    "train": train,
    "export": export,
    "write": write,
    "time": time_files,
    "plan_calibration": plan_calibration,
    "fit_calibration": fit_calibration,
    "ping": lambda session, params: {"pong": True},
}


def _weights(params: Params) -> Buffer | None:
    """Return the bytes of the new weights, where the network is a weights version."""
    from worker.files import mapped

    return mapped(Path(params["weights"])) if params.get("weights") else None


def _opset(params: Params, assignment: Assignment) -> int:
    """Return the opset that is asked for, where files of it can hold an assignment."""
    from app.domain.opsets import DEFAULT, OpsetTooLow, check_opset, widths_of

    found = int(params.get("opset") or DEFAULT)
    try:
        check_opset(found, widths_of(assignment))
    except OpsetTooLow as error:
        raise Refused("opset-too-low", str(error), []) from error
    return found


def _evaluator(session: Session) -> Evaluator:
    if session.evaluator is None:
        raise Refused("invalid-request", "nothing is open", [])
    return session.evaluator


def _evaluated(evaluator: Evaluator, item: Params, base: Assignment | None) -> Params:
    from app.domain.space import Assignment

    start = time.perf_counter()
    try:
        _adopt(evaluator, item)
        assignment = Assignment.from_json(item["assignment"])
        found = evaluator.evaluate(assignment, item["fidelity"], item.get("repair") or "sequential", base)
    except MemoryError:
        raise
    except (RuntimeError, ValueError, ArithmeticError) as error:
        if _out_of_memory(error):
            raise MemoryError(str(error)) from error
        return {"failure": _failure(error), "seconds": time.perf_counter() - start}
    return {"measurement": found.to_json()}


def _adopt(evaluator: Evaluator, item: Params) -> None:
    """Make a network known that training made, where an item's repair names one: `network` is its checkpoint's path."""
    if item.get("network") is None or evaluator.knows(item["repair"]):
        return
    from worker.export.checkpoint import read_checkpoint

    evaluator.adopt(item["repair"], read_checkpoint(Path(item["network"]).read_bytes())[0])


def _failure(error: Exception) -> Params:
    """Return the class of a measurement's failure and what is to be said of it."""
    from worker.search.metrics import Constant, NotFinite

    for kind, told in (("not-finite", NotFinite), ("constant-outputs", Constant)):
        if isinstance(error, told):
            return {"kind": kind, "detail": str(error)}
    return {"kind": "failed", "detail": f"{type(error).__name__}: {str(error)[:300]}"}


def _dataset(params: Params) -> Dataset:
    from worker.data import DatasetSpec, read_dataset

    return read_dataset(Path(params["path"]), DatasetSpec.from_json(params.get("spec") or {}))


def _roles(datasets: Params, network: Opened) -> dict[Role, RoleData]:
    """Return the three roles from one dataset split by its seed, from three datasets, or drawn where there are none."""
    from worker.data import check_against, role_data, split
    from worker.synthetic import synthetic

    if not datasets:
        return synthetic(network.folded)
    inputs, classes = network.graph.inputs, network.graph.classes
    found: dict[Role, RoleData] = {}
    for role, item in datasets.items():
        dataset = _dataset(item)
        check_against(dataset, inputs, classes)
        if role == "all":
            parts = split(dataset, int((item.get("spec") or {}).get("split_seed") or 0))
            return {part: role_data(dataset, inputs, rows) for part, rows in parts.items()}
        found[cast("Role", role)] = role_data(dataset, inputs)
    missing = {"calibration", "evaluation", "holdout"} - set(found)
    if missing:
        raise Refused("calibration-required", f"no dataset for {sorted(missing)}", [])
    return found


def _out_of_memory(error: BaseException) -> bool:
    text = str(error)
    return isinstance(error, MemoryError) or "can't allocate memory" in text or "Cannot allocate memory" in text


def _limit(limits: Params) -> None:
    # CUDA reserves far more addresses than it uses: where there is such a device, pages that can be written to count
    memory = resource.RLIMIT_DATA if CUDA.exists() else resource.RLIMIT_AS
    caps = {
        memory: limits["memory_bytes"],
        resource.RLIMIT_FSIZE: limits["file_bytes"],
        resource.RLIMIT_NOFILE: limits["files"],
        resource.RLIMIT_CORE: 0,
    }
    for which, cap in caps.items():
        resource.setrlimit(which, (cap, cap))
    if limits["alone"]:
        forbid_processes()
    # the soft limit sends SIGXCPU, which tells why; the hard one SIGKILL, as if memory had run out
    resource.setrlimit(resource.RLIMIT_CPU, (limits["cpu_s"], limits["cpu_s"] + CPU_GRACE_S))


def _kind(error: Exception) -> str:
    """Return the class of a failure: out-of-memory, limit or crashed."""
    if _out_of_memory(error):
        return "out-of-memory"
    return "limit" if isinstance(error, OSError) and error.errno in SPENT else "crashed"


def _leave() -> None:
    """Remove the own folder and end the whole group: the worker that would do it is gone."""
    folder = Path.cwd()
    if folder.name.startswith(FOLDER_PREFIX):
        shutil.rmtree(folder, ignore_errors=True)
        os.killpg(0, signal.SIGKILL)
    os._exit(0)


def _leave_with(worker: int) -> None:
    """Watch the worker's process, so that its death ends a running computation too."""
    while os.getppid() == worker:
        time.sleep(WATCH_S)
    _leave()


def _answer(session: Session, request: Params) -> Params:
    from worker.data import DatasetRefused
    from worker.graph.errors import NetworkRefused

    try:
        return {"result": METHODS[request["method"]](session, request["params"])}
    except (NetworkRefused, DatasetRefused, Refused) as refusal:
        error = {"kind": "refused", "slug": refusal.slug, "detail": refusal.detail, "errors": refusal.errors}
        return {"error": error}
    except Exception as error:  # the parent must learn of every other failure, whatever it is
        return {"error": {"kind": _kind(error), "detail": f"{type(error).__name__}: {str(error)[:400]}"}}


def main() -> None:
    """Serve requests until stdin closes."""
    _limit(json.loads(sys.argv[1]))
    threading.Thread(target=_leave_with, args=(os.getppid(),), daemon=True).start()
    out = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # whatever a library prints must not reach the protocol
    session = Session()
    import torch

    from worker.search import evaluate  # noqa: F401  what reading needs, before there is anything to read

    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    with suppress(BrokenPipeError):  # the worker is gone: nobody listens
        for line in sys.stdin:
            request = json.loads(line)
            reply = {"id": request["id"], **_answer(session, request)}
            out.write(json.dumps(reply, allow_nan=False) + "\n")
            out.flush()
    _leave()


if __name__ == "__main__":
    main()

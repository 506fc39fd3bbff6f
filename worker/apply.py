"""`tightfit apply`: a candidate made again from its config, the network and the data, without a service.

It is the same work as an export: a sandboxed child opens the network and the data as a search does, compresses the
config's assignment by the config's repair, writes and verifies the files. Equal inputs and versions give equal bytes.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from app.domain.methods import TRAINED
from app.domain.opsets import DEFAULT, LOWEST
from app.settings import Settings
from worker.export.config import ConfigRefused, read_config
from worker.export.report import versions
from worker.processor import CPU
from worker.sandbox import EXPORT_S, OPEN_S, Child, ChildDied, ChildRefused, Limits

Json = dict[str, Any]
OK, ERROR, DIFFERENT = 0, 1, 3
ALL = "all"
TIMED = ("report", "report-html", "config")
"""What holds measured times, or the digests of the others."""


class Refused(Exception):
    """Something that will not be done, by name."""

    def __init__(self, slug: str, detail: str) -> None:
        super().__init__(detail)
        self.slug, self.detail = slug, detail


def main(arguments: list[str] | None = None) -> int:
    """Run; return the exit code: 0 as delivered, 3 verified but other bytes, 1 refused or not verified."""
    given = _parser().parse_args(arguments)
    try:
        found = apply(given)
    except (Refused, ChildRefused, ConfigRefused) as refusal:
        slug = "invalid-config" if isinstance(refusal, ConfigRefused) else refusal.slug
        return _refused(slug, str(getattr(refusal, "detail", refusal)), given.json)
    except ChildDied as death:
        return _refused(death.kind, death.detail, given.json)
    except OSError as error:
        return _refused(type(error).__name__, str(error), given.json)
    print(json.dumps(found, indent=2) if given.json else _told(found))
    if found["verification"] != "verified":
        return ERROR
    return OK if found["same"] else DIFFERENT


def apply(given: argparse.Namespace) -> Json:
    """Make the candidate again; return its files, whether each is as delivered, the verification and the warnings.

    Raises Refused (digest-mismatch, dataset-required, trained-network), ConfigRefused, and what the child raises.
    """
    config = read_config(given.config.read_bytes())
    _check_made_by_search(config)
    datasets = _datasets(config, given.data)
    files = {"model": given.model, "weights": given.weights, **datasets}
    warnings = [*_strangers(config, files, given.force), *_other_versions(config["versions"])]
    opening = {
        "model": str(given.model.resolve()),
        "weights": given.weights and str(given.weights.resolve()),
        "datasets": {
            role: {"path": str(path.resolve()), "spec": config["datasets"][role]["spec"]}
            for role, path in datasets.items()
        },
        "device": config["device"],
        "options": config["options"],
        "processor": CPU,
    }
    given.out.mkdir(parents=True, exist_ok=True)
    with Child(Limits(memory_bytes=Settings().child_memory_bytes)) as child:
        child.call("open", opening, OPEN_S)
        asked = {**_export(config), "folder": str(given.out.resolve())}
        result = child.call("export", asked | ({} if given.opset is None else {"opset": given.opset}), EXPORT_S)
    return _compared(config, result, given.out, warnings)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="tightfit apply")
    parser.add_argument("config", type=Path)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--weights", type=Path)
    parser.add_argument("--data", action="append", default=[])
    parser.add_argument("--out", type=Path, default=Path())
    parser.add_argument("--opset", type=int, choices=range(LOWEST, DEFAULT + 1))
    parser.add_argument("--force", action="store_true")
    parser.add_argument("--json", action="store_true")
    return parser


def _datasets(config: Json, given: list[str]) -> dict[str, Path]:
    """Return the dataset file of each role the config names: FILE where it names one, else ROLE=FILE."""
    wanted = list(config["datasets"])
    if wanted == [ALL] and len(given) == 1:
        return {ALL: Path(given[0].removeprefix(f"{ALL}="))}
    found = {role: Path(path) for role, _, path in (item.partition("=") for item in given)}
    if set(found) != set(wanted):
        raise Refused("dataset-required", f"name {', '.join(f'--data {role}=FILE' for role in wanted)}")
    return found


def _check_made_by_search(config: Json) -> None:
    """Raise Refused for a network that training made: its weights are in its checkpoint, not in a recipe."""
    if str(config["repair"]).startswith(TRAINED):
        raise Refused("trained-network", "training made this candidate's weights: load its checkpoint instead")


def _strangers(config: Json, files: Mapping[str, Path | None], force: bool) -> list[str]:
    """Return warnings of files that are not those the candidate was made from. Raises Refused unless it is forced."""
    wanted = {"model": config["model"]["sha256"], "weights": config["model"].get("weights_sha256")}
    wanted |= {role: item["sha256"] for role, item in config["datasets"].items()}
    found = []
    for name, digest in wanted.items():
        path = files[name]
        own = None if path is None else _digest(path)
        if own != digest:
            what = name if name in ("model", "weights") else f"dataset {name!r}"
            found.append(f"{what} {path or '(none)'}: SHA-256 {own}, the config names {digest}")
    if found and not force:
        raise Refused("digest-mismatch", "; ".join(found) + ". --force goes on all the same")
    return found


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _other_versions(wanted: Mapping[str, str]) -> list[str]:
    own = versions()
    return [
        f"{name} {own.get(name, 'none')} here, {version} made the candidate: bytes may differ"
        for name, version in wanted.items()
        if own.get(name) != version
    ]


def _export(config: Json) -> Json:
    """Return what the export of a candidate asks the child for."""
    origin = {name: config[name] for name in ("candidate", "model", "datasets", "device", "options") if name in config}
    return {
        "origin": origin,
        "assignment": config["assignment"],
        "repair": config["repair"],
        "limits": config["limits"],
        "measured": config.get("measured"),
        "opset": config.get("opset"),
        "manifest": config["record"],
    }


def _compared(config: Json, result: Json, folder: Path, warnings: list[str]) -> Json:
    """Return the files with what became of each: `same` as delivered or not, None where that can't be."""
    files = [
        {
            **item,
            "path": str(folder / item["name"]),
            "same": None if item["kind"] in TIMED else item["sha256"] == config["files"].get(item["kind"]),
        }
        for item in result["files"]
    ]
    return {
        "files": files,
        "same": all(item["same"] is not False for item in files),
        "verification": result["verification"],
        "failures": result["report"]["failures"],
        "warnings": warnings,
    }


def _told(found: Json) -> str:
    words = {True: "the delivered bytes", False: "other bytes than delivered", None: ""}
    lines = [f"warning: {text}" for text in found["warnings"]]
    lines += [f"{item['path']}  {item['bytes']} bytes  {words[item['same']]}".rstrip() for item in found["files"]]
    lines += [f"failed: {item['code']}: {item['detail']}" for item in found["failures"]]
    return "\n".join([*lines, f"verification: {found['verification']}"])


def _refused(slug: str, detail: str, as_json: bool) -> int:
    if as_json:
        print(json.dumps({"problem": {"slug": slug, "detail": detail}}, indent=2))
    else:
        print(f"{slug}: {detail}", file=sys.stderr)
    return ERROR


if __name__ == "__main__":
    sys.exit(main())

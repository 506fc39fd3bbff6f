"""The config of a candidate: all that makes it again from its network and data, as YAML (docs/artefacts.md)."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

import yaml

from worker.export.report import versions

FORMAT, VERSION = "tightfit-config", 1
MAX_BYTES = 16 << 20
NEEDED = ("model", "datasets", "device", "options", "limits", "assignment", "repair", "record", "versions", "files")
HEAD = (
    "# Makes a compressed network again from the one it came from, without a service:\n"
    "#   tightfit apply THIS_FILE --model NETWORK --data DATASET --out FOLDER\n"
)


class ConfigRefused(ValueError):
    """A file that is no config."""


def config_yaml(recipe: Mapping[str, Any], contents: Mapping[str, bytes]) -> bytes:
    """Return the config of a candidate with the digests of its files; equal recipes and files give equal bytes.

    `recipe` holds what `NEEDED` names, but for versions and files: `model` and `datasets` by digest, `options` (how
    many rows each stage looks at), `repair` (with the steps of the polish), `record` (the manifest of the checkpoint).
    """
    digests = {kind: hashlib.sha256(content).hexdigest() for kind, content in contents.items()}
    document = {"format": FORMAT, "version": VERSION, **recipe, "versions": versions(), "files": digests}
    text = yaml.safe_dump(_plain(document), sort_keys=False, default_flow_style=None, width=120)
    return (HEAD + text).encode()


def read_config(data: bytes) -> dict[str, Any]:
    """Return a config's content. Raises ConfigRefused for anything else."""
    if len(data) > MAX_BYTES:
        raise ConfigRefused(f"{len(data)} bytes are no config")
    try:
        found = yaml.safe_load(data)
    except (yaml.YAMLError, UnicodeDecodeError, ValueError, RecursionError) as error:
        raise ConfigRefused(f"not YAML: {str(error)[:200]}") from error
    if not isinstance(found, dict) or (found.get("format"), found.get("version")) != (FORMAT, VERSION):
        raise ConfigRefused(f"not a {FORMAT} of version {VERSION}")
    missing = [name for name in NEEDED if name not in found]
    if missing:
        raise ConfigRefused(f"{missing} are missing")
    return found


def _plain(value: Any) -> Any:
    """Return a value of plain dicts and lists, none of them twice: YAML would write an alias for the second."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, list | tuple) else value

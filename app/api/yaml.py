"""YAML bodies: the part of YAML that JSON can say, small, without anchors and tags."""

from __future__ import annotations

import json
from typing import Any

import yaml

from app.api.deps import parse_json
from app.problems import Problem

YAML_TYPES = ("application/yaml", "application/x-yaml", "text/yaml")
MAX_YAML_BYTES = 64 * 1024


class _Loader(yaml.SafeLoader):
    """Refuses anchors (a few bytes could unfold into gigabytes) and a key named twice."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        """Compose one node, which is not another's alias."""
        if self.check_event(yaml.events.AliasEvent):
            raise Problem("malformed-yaml", "anchors and aliases are not read")
        return super().compose_node(parent, index)

    def construct_mapping(self, node: Any, deep: bool = False) -> Any:
        """Construct a mapping in which each key is named once."""
        keys = [(key.tag, key.value) for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
        if len(set(keys)) != len(keys):
            raise Problem("malformed-yaml", f"a key is named twice near line {node.start_mark.line + 1}")
        return super().construct_mapping(node, deep)


def parse_yaml(raw: bytes) -> Any:
    """Return what a YAML document says as JSON values; numbers that are keys become text.

    Raises Problem malformed-yaml, and what `parse_json` raises for numbers and depth.
    """
    try:
        value = yaml.load(raw.decode("utf-8"), _Loader)
        return parse_json(json.dumps(value).encode())
    except (UnicodeDecodeError, yaml.YAMLError, TypeError, ValueError, RecursionError) as error:
        raise Problem("malformed-yaml", " ".join(str(error).split())[:200]) from error

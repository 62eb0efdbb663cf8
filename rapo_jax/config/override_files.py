"""Reads override files: YAML 1.2, or JSON, of nested or dotted keys."""

from __future__ import annotations

import re
from pathlib import Path

import yaml

from rapo_jax.io.files import Json, read_object

OTHERS = ("bool", "float", "int", "timestamp")
"""Values that YAML 1.1, which PyYAML reads, has more of than YAML 1.2."""


class _Yaml12(yaml.SafeLoader):
    """YAML 1.2's plain values: `off`, 1:30 and 2026-01-01 are words, and 1e-6 is a number.

    A whole number with leading zeros is a word, too: its readers do not agree on its base.
    """

    yaml_implicit_resolvers = {
        first: [(tag, regex) for tag, regex in resolvers if tag.rpartition(":")[2] not in OTHERS]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[object, object]:
        keys = [self.construct_object(key) for key, _ in node.value]
        if twice := [key for key in keys if keys.count(key) > 1]:
            raise yaml.YAMLError(f"{twice[0]} is there twice")
        return super().construct_mapping(node, deep)


_Yaml12.add_implicit_resolver(
    "tag:yaml.org,2002:bool", re.compile("(?:true|True|TRUE|false|False|FALSE)$"), list("tTfF")
)
_Yaml12.add_implicit_resolver(
    "tag:yaml.org,2002:int", re.compile(r"[-+]?(?:0|[1-9]\d*)$"), list("-+0123456789")
)
_Yaml12.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"[-+]?(?:(?:\d+\.\d*|\.\d+)(?:[eE][-+]?\d+)?|\d+[eE][-+]?\d+)$"),
    list("-+.0123456789"),
)


def read_override(path: Path) -> dict[str, Json]:
    """The nested or dotted keys of an override file."""
    if not path.is_file():
        raise FileNotFoundError(f"--override={path}: there is no such file")
    if path.suffix == ".json":
        try:
            return read_object(path)
        except ValueError as error:
            raise ValueError(f"--override={error}") from None
    try:
        value = yaml.load(path.read_text(encoding="utf-8"), _Yaml12)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"--override={path}: not YAML ({reason})") from None
    if value is not None and not isinstance(value, dict):
        raise ValueError(f"--override={path}: expected keys, such as rl.steps: 3")
    return value or {}

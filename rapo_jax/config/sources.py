"""Puts a config together: defaults < method < config file or workdir < override files < flags.

`resolve` is what every command uses that takes `--config`; `read.read_settings` then checks it. It
makes modules beside the config file known, which it may import or name as user code.
"""

from __future__ import annotations

import ast
import copy
import dataclasses
import difflib
import importlib.util
import json
import re
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from rapo_jax.config import KEYS, Settings
from rapo_jax.config.methods import METHODS
from rapo_jax.config.override_files import read_override
from rapo_jax.io.files import Json, read_object

CONFIGS = Path(__file__).resolve().parents[1] / "configs"
"""The configs of this package: `--config=tiny` is CONFIGS/tiny.py."""
STORED = "config.json"
"""The config of a run, in its workdir."""
NOTES = ("commit", "config_file")
"""Keys that STORED adds to the config: commit of the code, and the config file of the run."""
FLAG = "--config."
OPEN_KEYS = tuple(name for name, key in KEYS.items() if isinstance(key.value, Mapping))
"""Keys whose value is a mapping with any keys."""


class Resolved(NamedTuple):
    """A config with every key, and where each value is from."""

    config: dict[str, Json]
    """Nested groups, as `read_settings` takes it."""
    origins: dict[str, str]
    """Dotted key -> 'default', 'method=NAME', a file, or the flag '--config.KEY'."""
    base: str
    """The value of `--config`, or the workdir's config.json."""
    file: Path | None
    """The Python file that it started from, also that of a stored config if it is known."""

    @property
    def overridden(self) -> set[str]:
        """The dotted keys that override files and flags set."""
        given = ("default", self.base, f"method={self.config['method']}")
        return {key for key, origin in self.origins.items() if origin not in given}

    @property
    def published(self) -> list[str]:
        """KEY=VALUE of each key that has the published setting of the method."""
        origin = f"method={self.config['method']}"
        values = flatten(self.config)
        return [f"{key}={value!r}" for key, value in values if self.origins.get(key) == origin]


def resolve(
    config: str | None,
    *,
    workdir: Path | None = None,
    overrides: Sequence[str] = (),
    flags: Iterable[tuple[str, str]] = (),
) -> Resolved:
    """The config of a command line.

    Args:
        config: a Python file with get_config(), the name of a config of this package, or a JSON
            file such as WORKDIR/config.json; None for the config that `workdir` holds.
        workdir: used without `config` only.
        overrides: YAML or JSON files of nested or dotted keys; later ones win.
        flags: (dotted key, text) of each --config.KEY=TEXT in its order; the last one of a key
            wins.

    Raises:
        ValueError, FileNotFoundError: a file or a flag cannot be read, or a key does not exist.
        RuntimeError: the Python file raised a ValueError or FileNotFoundError of its own.
    """
    if config is None:
        if workdir is None or not (workdir / STORED).is_file():
            place = f"{workdir} holds no {STORED} yet" if workdir else "without it, --workdir"
            raise ValueError(f"--config is missing: {place}; name a config, such as --config=tiny")
        config = str(workdir / STORED)
    values, file = _load(config)
    resolved = dataclasses.asdict(Settings())
    origins = dict.fromkeys(KEYS, "default")
    is_stored = Path(config).suffix == ".json"
    for name, value in flatten(values):
        if is_stored or name not in KEYS or value != KEYS[name].value:
            origins[name] = config
        _put(resolved, name, value)
    for path in overrides:
        for name, value in flatten(read_override(Path(path))):
            _put(resolved, known(name, where=f"--override={path}: {name}"), value)
            origins[_declared(name)] = path
    for name, text in flags:
        for part, value in flatten({known(name, where=FLAG + name): parse(name, text)}):
            _put(resolved, known(part, where=FLAG + part), value)
            origins[_declared(part)] = FLAG + name
    method = METHODS.get(str(resolved["method"]))  # an unknown one is refused by `read_settings`
    for name, value in method.settings.items() if method else ():
        if origins[name] == "default":
            _put(resolved, name, value)
            origins[name] = f"method={resolved['method']}"
    return Resolved(resolved, origins, config, file)


def stored_config(path: Path) -> dict[str, Json]:
    """The config in a run's config.json. Keys that it lacks have their defaults.

    Raises:
        ValueError: the file is damaged.
    """
    config = _read_object(path)
    return {name: value for name, value in config.items() if name not in NOTES}


def differences(stored: Mapping[str, Json], new: Mapping[str, Json]) -> list[str]:
    """The keys in which a call differs from the run of its workdir, with their two values.

    Keys that any call may set are left out, and `rl.steps` if it grows.
    """
    defaults = {name: key.value for name, key in KEYS.items()}
    old, now = (json.loads(json.dumps(defaults | dict(flatten(x)))) for x in (stored, new))
    found = []
    for name in sorted(old | now):
        was, value = old.get(name), now.get(name)
        grows = name == "rl.steps" and isinstance(was, int) and was < value
        if was != value and not grows and not (name in KEYS and KEYS[name].per_call):
            found.append(f"{name} was {was!r}, is {value!r}")
    return found


def as_yaml(resolved: Resolved) -> str:
    """A line for each key with its value and its origin; as a file it is an override file."""
    lines = []
    for name, value in flatten(resolved.config):
        text = f"{name}: {json.dumps(value, ensure_ascii=False, default=str)}"
        lines.append(f"{text:<56}  # {resolved.origins.get(name, '')}")
    return "\n".join(lines)


def known(name: str, *, where: str) -> str:
    """`name`, if it is a key or a group; raises ValueError with the nearest key otherwise."""
    if _declared(name) in KEYS or any(key.startswith(f"{name}.") for key in KEYS):
        return name
    near = difflib.get_close_matches(name, KEYS, n=1)
    hint = f"did you mean {near[0]}?" if near else "docs/config.md has them all"
    raise ValueError(f"{where}: the config has no such key; {hint}")


def parse(name: str, text: str) -> Json:
    """The value of the flag --config.NAME=TEXT, by the declared type of the key.

    Raises:
        ValueError: the text is no such value.
    """
    kind = KEYS[name].type if name in KEYS else ""
    if kind == "str":
        return text
    try:
        if kind == "bool":
            return {"true": True, "1": True, "false": False, "0": False}[text.lower()]
        if kind in ("int", "float"):
            return int(text) if kind == "int" else float(text)
    except (KeyError, ValueError):
        raise ValueError(f"{FLAG}{name}={text}: expected {kind}") from None
    try:
        value = ast.literal_eval(text)
    except (SyntaxError, ValueError):
        value = {"true": True, "false": False}.get(text, text)
    if kind.startswith("tuple"):
        return tuple(value) if isinstance(value, list | tuple) else (value,)
    return value


def _declared(name: str) -> str:
    """The declared key that a dotted name is or lies within, as task.user_arguments.words does."""
    return next((key for key in OPEN_KEYS if name.startswith(f"{key}.")), name)


def flatten(values: Mapping[str, Json], prefix: str = "") -> Iterator[tuple[str, Json]]:
    """(dotted key, value) of nested groups."""
    for key, value in values.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping) and name not in OPEN_KEYS:
            yield from flatten(value, f"{name}.")
        else:
            yield name, value


def nested(values: Mapping[str, object]) -> dict[str, Json]:
    """The groups of values by dotted key: the inverse of `flatten`."""
    config: dict[str, Json] = {}
    for name, value in values.items():
        _put(config, name, value)
    return config


def _put(config: dict[str, Json], name: str, value: Json) -> None:
    *groups, last = name.split(".")
    for group in groups:
        inner = config.setdefault(group, {})
        if not isinstance(inner, dict):
            raise ValueError(f"{name}: {group} is a key, not a group of keys")
        config = inner
    config[last] = copy.deepcopy(value)


def _load(config: str) -> tuple[dict[str, Json], Path | None]:
    """The values of `--config`, and the Python file that they are from."""
    whole = Path(config).is_file()  # a path may hold a colon, too
    name, colon, argument = (config, "", "") if whole else config.partition(":")
    path = config_file(name)
    if path.suffix == ".json":
        file = _read_object(path).get("config_file")
        stored = stored_config(path)
        stored.pop("distributed", None)  # the processes of that call, not of this one
        if file:
            _find_modules_beside(Path(file))
        return stored, Path(file) if file else None
    spec = importlib.util.spec_from_file_location("rapo_jax_config", path)
    if spec is None or spec.loader is None:
        raise ValueError(f"--config={name}: a config is a Python file, or JSON")
    module = importlib.util.module_from_spec(spec)
    _find_modules_beside(path)
    try:
        spec.loader.exec_module(module)
        make = getattr(module, "get_config", None)
        values = make and (make(argument) if colon else make())
    except (ValueError, OSError) as error:  # with its traceback, as any error in a user's code
        raise RuntimeError(f"--config={name} fails") from error
    if values is not None and hasattr(values, "to_dict"):
        values = values.to_dict()
    if not isinstance(values, dict):
        got = "has none" if make is None else f"returned {type(values).__name__}"
        raise ValueError(f"--config={name}: get_config() must return a ConfigDict; it {got}")
    return values, path


def _find_modules_beside(path: Path) -> None:
    """Adds the folder of a config file to those of modules; last, so that it hides none."""
    if (folder := str(path.resolve().parent)) not in sys.path:
        sys.path.append(folder)


def config_file(name: str) -> Path:
    """The file of `--config=NAME`. Raises FileNotFoundError if there is none."""
    packaged = CONFIGS / f"{name}.py"
    if re.fullmatch(r"\w+", name) and packaged.is_file():
        return packaged
    if not Path(name).is_file():
        names = sorted(path.stem for path in CONFIGS.glob("[a-z]*.py"))
        raise FileNotFoundError(
            f"--config={name}: there is no such file; configs by name: {', '.join(names)}"
        )
    return Path(name)


def _read_object(path: Path) -> dict[str, Json]:
    try:
        return read_object(path)
    except ValueError as error:
        reason = str(error).removeprefix(f"{path}: ")
        raise ValueError(
            f"{path}: cut off or damaged ({reason}); restore it from a backup, or use a new "
            "--workdir"
        ) from None

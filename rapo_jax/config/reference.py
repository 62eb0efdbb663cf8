"""The reference of all keys, as docs/config.md and in short for `--help`."""

from __future__ import annotations

import textwrap
from operator import attrgetter

from rapo_jax.config import KEYS, STAGES, Settings
from rapo_jax.config.keys import Key
from rapo_jax.io.tables import markdown_table

HEAD = """\
# Config

<!-- Written by `python -m rapo_jax.config > docs/config.md`; do not edit. -->

A config is a Python file with a function `get_config()` that starts from `configs/default.py` and
changes what differs, such as `configs/tiny.py`. On the command line a key is set by
`--config.GROUP.KEY=VALUE`. The defaults below are those of `configs/default.py`. *Paper* names the
section, equation, table or figure of arXiv 2603.03078 that a key comes from. WORKDIR is the folder
given by `--workdir`.

*Per call*: calls on one workdir may differ in this key, because it changes no result (up to
rounding), or because the output files record its value. All other keys belong to the run; of
these `rl.steps` may grow.
"""

HEADINGS = ("Key", "Type", "Default", "Per call", "Meaning", "Values", "Paper")

FREQUENT = (
    "seed", "method", "model.folder", "rollout.questions", "rollout.group_size", "rollout.n_hybrid",
    "retrieval.probability", "retrieval.noise", "retrieval.schedule", "buffer.agent", "rl.steps",
    "rl.m", "rl.a", "optimizer.learning_rate", "evaluate.suites",
)  # fmt: skip
"""The keys that are set most often, which `--help` shows."""


def reference() -> str:
    """docs/config.md: a table for each group of keys."""
    groups: dict[str, list[Key]] = {}
    for name, key in KEYS.items():
        groups.setdefault(name.rpartition(".")[0], []).append(key)
    return HEAD + "".join(_table(name, keys) for name, keys in groups.items())


def help_text() -> str:
    """The stages and the most frequent keys, for a terminal."""
    lines = ["Stages, in their order (--config.stages):"]
    lines += [_item(f"{name:<12}  {meaning}", indent=18) for name, meaning in STAGES.items()]
    lines += ["", "Keys set most often, with the defaults of configs/default.py:"]
    for key in map(KEYS.__getitem__, FREQUENT):
        choices = f" ({', '.join(key.choices)})" if key.choices else ""
        lines.append(_item(f"--config.{key.name}={key.value!r}: {key.meaning}{choices}", indent=8))
    lines += ["docs/config.md has all keys; `python -m rapo_jax.config` prints it.", ""]
    return "\n".join(lines)


def _item(text: str, *, indent: int) -> str:
    return textwrap.fill(text, 100, initial_indent=" " * 4, subsequent_indent=" " * indent)


def _table(name: str, keys: list[Key]) -> str:
    group = attrgetter(name)(Settings()) if name else Settings()
    rows = [
        (
            f"`{key.name.rpartition('.')[2]}`",
            f"`{key.type}`" + (f", {key.unit}" if key.unit else ""),
            f"`{key.value!r}`",
            "yes" if key.per_call else "",
            key.meaning,
            _values(key),
            key.paper,
        )
        for key in keys
    ]
    table = markdown_table(HEADINGS, rows)
    about = textwrap.dedent(f"    {type(group).__doc__}").strip()
    return f"\n## {name or 'Top level'}\n\n{about}\n\n{table}\n"


def _values(key: Key) -> str:
    """The choices or the bounds of a key."""
    choices = [f"`{name}`" + (f": {x}" if x else "") for name, x in key.choices.items()]
    signs = (("≥", key.at_least), (">", key.above), ("≤", key.at_most))
    bounds = [f"{sign} {bound}" for sign, bound in signs if bound is not None]
    return "<br>".join(choices) or ", ".join(bounds)

"""Error messages name keys that exist."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

from rapo_jax.config import KEYS

PACKAGE = Path(__file__).resolve().parents[2] / "rapo_jax"
GROUPS = "|".join(sorted({name.partition(".")[0] for name in KEYS if "." in name}))
NAMED = re.compile(rf"(?<![\w./-])((?:{GROUPS})(?:\.[a-z_0-9*]+)+)=")
FILES = [path for path in sorted(PACKAGE.rglob("*.py")) if "raise " in path.read_text("utf-8")]


def raised_texts(tree):
    """The strings in `raise` statements, with '*' for each value that is put in."""
    raised = (node for node in ast.walk(tree) if isinstance(node, ast.Raise))
    for node in (part for statement in raised for part in ast.walk(statement)):
        if isinstance(node, ast.JoinedStr):
            parts = (part.value if isinstance(part, ast.Constant) else "*" for part in node.values)
            yield "".join(parts)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.value


def is_key(name):
    pattern = re.escape(name).replace(r"\*", "[a-z_0-9]+")
    return any(re.fullmatch(pattern, key) for key in KEYS)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(PACKAGE).as_posix())
def test_every_key_in_a_raised_message_exists(path):
    texts = raised_texts(ast.parse(path.read_text(encoding="utf-8")))
    named = {name for text in texts for name in NAMED.findall(text)}
    assert {name for name in named if not is_key(name)} == set()


def test_a_key_that_does_not_exist_is_found():
    source = 'raise ValueError(f"task.{split}_questions={x}: no; set task.name=1")'
    (text, *_) = raised_texts(ast.parse(source))
    assert NAMED.findall(text) == ["task.*_questions", "task.name"]
    assert not is_key("task.*_questions") and is_key("task.name")

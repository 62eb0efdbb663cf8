"""Runs that share a buffer or a cold start: one makes it, with one splitting, and others wait."""

from __future__ import annotations

import json
import shutil

import pytest

from rapo_jax.buffer.buffer import _identity
from rapo_jax.train.buffer import load_buffer


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("retrieval.unit", "trajectory"),
        ("retrieval.mask", "x+"),
        ("retrieval.max_chars", 77),
        ("buffer.include_answers", False),
    ],
)
def test_a_buffer_that_was_split_another_way_is_refused(branch, key, value):
    with pytest.raises(ValueError, match=rf"{key}=.*was built with .*set it back"):
        load_buffer(branch({key: value}))


def test_a_buffer_whose_manifest_does_not_say_whether_it_has_answers_is_taken(
    branch, trunk, tmp_path
):
    folder = shutil.copytree(trunk.buffer, tmp_path / "buffer")
    built = load_buffer(trunk)
    manifest = {k: v for k, v in built.manifest.items() if k != "include_answers"}
    lines = (folder / "traces" / "items.jsonl").read_bytes()
    manifest["identity"] = _identity(lines, built.key_ME, manifest)
    (folder / "traces" / "manifest.json").write_text(json.dumps(manifest))
    for wanted in (True, False):
        changes = {"buffer.folder": str(folder), "buffer.include_answers": wanted}
        found = load_buffer(branch(changes, name=str(wanted)))
        assert found.step_traces == built.step_traces

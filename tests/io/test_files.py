"""Files that are whole or not there."""

from __future__ import annotations

import subprocess
import sys

import pytest

from rapo_jax.io.files import agree, claimed, write_json, write_text

HOLDER = """
import sys
from pathlib import Path
from rapo_jax.io.files import claimed
with claimed(Path(sys.argv[1]), key="workdir"):
    print("mine", flush=True)
    sys.stdin.read()
"""


def test_a_file_that_cannot_be_written_whole_leaves_the_former_one(tmp_path):
    path = tmp_path / "a.json"
    write_json(path, {"kept": "é"})
    before = path.read_bytes()
    with pytest.raises(UnicodeEncodeError):
        write_text(path, "x" * 100 + "\ud800")
    assert path.read_bytes() == before


def test_files_of_something_else_are_refused_with_the_key_and_both_values(tmp_path):
    note = tmp_path / "made" / "note.json"
    told = {"what": "mine.jsonl holds rows", "remedy": "move it away"}
    agree(note, {"seed": 1, "unit": None}, **told)
    agree(note, {"seed": 1}, **told)
    with pytest.raises(
        ValueError, match=r"^mine.jsonl holds rows with another seed \(1, now 2\); "
    ):
        agree(note, {"seed": 2}, **told)
    with pytest.raises(ValueError, match=r"another model \(None, now 'a'\); move it away$"):
        agree(note, {"seed": 1, "model": "a"}, **told)


@pytest.mark.parametrize("text", ["", "{", "[]", '"a"'])
def test_a_damaged_note_is_refused(tmp_path, text):
    note = tmp_path / "note.json"
    note.write_text(text)
    with pytest.raises(ValueError, match="note.json: not JSON; move it away"):
        agree(note, {}, what="", remedy="move it away")


def test_a_folder_is_of_one_process_until_it_ends_or_is_killed(tmp_path):
    command = [sys.executable, "-c", HOLDER, str(tmp_path)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, **pipes) as other:
        assert other.stdout.readline() == "mine\n"
        with (
            pytest.raises(ValueError, match=r"^workdir='.*': another process is at work there; "),
            claimed(tmp_path, key="workdir"),
        ):
            pass
        other.kill()
    with claimed(tmp_path, key="workdir"):
        pass

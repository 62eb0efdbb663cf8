"""Files written whole or not at all, recorded metadata, and the lock on a folder."""

from __future__ import annotations

import subprocess
import sys

import pytest

from rapo_jax.io.files import claimed, read_json, write_json, write_or_check, write_text

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


WRITER = """
import sys
from pathlib import Path
from rapo_jax.io.files import write_json
print("ready", flush=True)
sys.stdin.readline()
for n in range(100):
    write_json(Path(sys.argv[1]), {"n": n})
"""


def test_processes_that_write_one_file_do_not_disturb_each_other(tmp_path):
    path = tmp_path / "gates.json"
    how = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    command = [sys.executable, "-c", WRITER, str(path)]
    writers = [subprocess.Popen(command, **how) for _ in range(2)]
    for writer in writers:
        assert writer.stdout.readline() == "ready\n"
    for writer in writers:
        writer.stdin.write("\n")
        writer.stdin.flush()
    assert [writer.communicate() and writer.returncode for writer in writers] == [0, 0]
    assert read_json(path) == {"n": 99}
    assert list(tmp_path.iterdir()) == [path]


def test_a_torn_file_is_an_error_that_names_it_and_a_missing_one_gives_the_default(tmp_path):
    path = tmp_path / "done.json"
    assert read_json(path, default={"stages": []}) == {"stages": []}
    write_json(path, {"stages": ["rl"]})
    path.write_bytes(path.read_bytes()[:-5])
    with pytest.raises(ValueError, match=r"done\.json: cut off or damaged .* remove it"):
        read_json(path)


def test_files_with_other_metadata_are_refused_with_the_key_and_both_values(tmp_path):
    path = tmp_path / "made" / "metadata.json"
    texts = {"what": "mine.jsonl holds rows", "remedy": "move it away"}
    write_or_check(path, {"seed": 1, "unit": None}, **texts)
    write_or_check(path, {"seed": 1}, **texts)
    with pytest.raises(
        ValueError, match=r"^mine.jsonl holds rows with another seed \(1, now 2\); "
    ):
        write_or_check(path, {"seed": 2}, **texts)
    with pytest.raises(ValueError, match=r"another model \(None, now 'a'\); move it away$"):
        write_or_check(path, {"seed": 1, "model": "a"}, **texts)


@pytest.mark.parametrize("text", ["", "{", "[]", '"a"'])
def test_damaged_metadata_are_refused(tmp_path, text):
    path = tmp_path / "metadata.json"
    path.write_text(text)
    with pytest.raises(
        ValueError, match=r"metadata\.json: (not JSON \(|expected an object).*; move it away$"
    ):
        write_or_check(path, {}, what="", remedy="move it away")


def test_a_folder_is_locked_until_its_process_ends_or_is_killed(tmp_path):
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


def test_a_second_claim_of_one_process_is_refused_and_the_first_one_kept(tmp_path):
    command = [sys.executable, "-c", HOLDER, str(tmp_path)]
    with claimed(tmp_path, key="workdir"):
        again = claimed(tmp_path / "x" / "..", key="workdir")
        with pytest.raises(ValueError, match="this process is at work there already"), again:
            pass
        done = subprocess.run(command, capture_output=True, text=True, input="", check=False)
        assert "another process is at work there" in done.stderr
    done = subprocess.run(command, capture_output=True, text=True, input="", check=False)
    assert done.stdout == "mine\n"

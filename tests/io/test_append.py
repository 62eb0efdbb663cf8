"""Lines appended to a file: all or none, behind whatever a kill left."""

from __future__ import annotations

from pathlib import Path

import pytest

from rapo_jax.io.jsonl import append_lines
from tests.io.full_disk import room_for


@pytest.mark.parametrize("sync", [False, True])
def test_lines_are_appended_and_a_line_that_a_kill_cut_short_is_closed_off(tmp_path, sync):
    path = tmp_path / "a.jsonl"
    append_lines(path, '{"step": 0}\n', sync=sync)
    with path.open("a") as file:
        file.write('{"st')
    append_lines(path, '{"é": 1}\n{"step": 2}\n', sync=sync)
    append_lines(path, "", sync=sync)
    assert path.read_text().splitlines() == ['{"step": 0}', '{"st', '{"é": 1}', '{"step": 2}']


@pytest.mark.parametrize("before", ['{"step": 0}\n', '{"st', ""])
def test_lines_that_do_not_fit_leave_the_file_as_it_was(tmp_path, before):
    path = tmp_path / "a.jsonl"
    path.write_text(before)
    with room_for(len(before) + 5), pytest.raises(ValueError, match="a.jsonl: cannot be written"):
        append_lines(path, '{"step": 1}\n')
    assert path.read_text() == before
    append_lines(path, '{"step": 1}\n')
    assert path.read_text().endswith('\n{"step": 1}\n' if before else '{"step": 1}\n')


def test_a_device_without_room_is_an_error_with_a_remedy():
    with pytest.raises(ValueError, match="No space left on device.; free disk space"):
        append_lines(Path("/dev/full"), "1\n")

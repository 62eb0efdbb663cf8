"""A disk that is full, or fails: appends are whole or taken back, old checkpoints stay whole."""

from __future__ import annotations

import errno
import json
import os
import shutil
import subprocess
import sys

import pytest

from benchmarks.small_runs import ROOT, build_failing_disk, failing

pytestmark = pytest.mark.skipif(shutil.which("cc") is None, reason="no C compiler: install gcc")

APPENDS = """
import sys
from pathlib import Path
from rapo_jax.io.jsonl import append_lines
for number in range(5):
    try:
        append_lines(Path(sys.argv[1]) / "rows.jsonl", '{"row": %d}\\n' % number)
    except ValueError as error:
        print(number, error)
"""
SAVES = """
import json, sys
import jax.numpy as jnp, numpy as np
from rapo_jax.run.checkpoint import Checkpoints
from rapo_jax.types import TrainState

folder, mode = sys.argv[1:]

def state(step):
    noise = np.random.default_rng(step).standard_normal(2_000).astype(np.float32)
    return TrainState({"w": jnp.asarray(noise)}, {}, jnp.int32(step))

store, saved = Checkpoints(folder, keep=2), []
if mode == "save":
    for step in (1, 2, 3):
        try:
            store.save(step, state(step), {"at": step})
            saved.append(step)
        except Exception as error:
            print(type(error).__name__, file=sys.stderr)
            break
elif store.latest is not None:
    found, metadata = store.restore(state(0))
    step = int(found.step)
    assert metadata["at"] == step
    assert (np.asarray(found.params["w"]) == np.asarray(state(step).params["w"])).all()
    saved.append(step)
print(json.dumps(saved))
"""


@pytest.fixture(scope="module")
def library(tmp_path_factory):
    return build_failing_disk(tmp_path_factory.mktemp("library"))


def run(program, environment, *arguments):
    return subprocess.run(
        [sys.executable, "-c", program, *map(str, arguments)],
        env=os.environ | {"PYTHONPATH": str(ROOT)} | environment,
        capture_output=True, text=True, check=False, timeout=120,
    )  # fmt: skip


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO])
def test_an_append_on_a_failing_disk_is_whole_or_taken_back(tmp_path, library, code):
    folder = tmp_path / "counted"
    folder.mkdir()
    counted = failing(library, folder, count=tmp_path / "writes")
    assert run(APPENDS, counted, folder).stdout == ""
    writes = int((tmp_path / "writes").read_text())
    assert writes >= 5
    for first in range(1, writes + 1):
        folder = tmp_path / str(first)
        folder.mkdir()
        done = run(APPENDS, failing(library, folder, first=first, code=code), folder)
        failed = [line.split(" ", 1) for line in done.stdout.splitlines()]
        assert failed and all(os.strerror(code) in said for _, said in failed), done.stderr
        missing = {int(number) for number, _ in failed}
        rows = "".join(f'{{"row": {n}}}\n' for n in range(5) if n not in missing)
        assert (folder / "rows.jsonl").read_text() == rows


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO])
def test_a_checkpoint_that_was_saved_is_read_whatever_failed_after_it(tmp_path, library, code):
    folder = tmp_path / "counted"
    done = run(SAVES, failing(library, folder, count=tmp_path / "writes"), folder, "save")
    assert json.loads(done.stdout.splitlines()[-1]) == [1, 2, 3], done.stderr
    writes = int((tmp_path / "writes").read_text())
    for first in (writes // 2, writes - 1):  # in the second save, and late in the third
        folder = tmp_path / str(first)
        done = run(SAVES, failing(library, folder, first=first, code=code), folder, "save")
        saved = json.loads(done.stdout.splitlines()[-1])
        again = run(SAVES, {}, folder, "read")
        assert again.returncode == 0, again.stderr
        assert json.loads(again.stdout.splitlines()[-1])[0] >= saved[-1]

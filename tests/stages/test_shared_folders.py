"""Runs that share a buffer or a cold start: one makes it, with one splitting, and others wait."""

from __future__ import annotations

import contextlib
import json
import shutil
import subprocess
import sys
import threading

import pytest

from rapo_jax.buffer.buffer import _identity
from rapo_jax.distributed import MAKING, Stopped
from rapo_jax.io import signals
from rapo_jax.stages.buffer import build_buffer
from rapo_jax.train.buffer import load_buffer
from rapo_jax.train.sft import train_cold_start

HOLDER = """
import sys
from pathlib import Path
from rapo_jax.io.files import locked
with locked(Path(sys.argv[1])):
    print("mine", flush=True)
    sys.stdin.readline()
"""


@contextlib.contextmanager
def another_run_makes(folder):
    """Another process that has the lock of a folder; yields a function that ends it."""
    command = [sys.executable, "-c", HOLDER, str(folder / MAKING)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, **pipes) as process:
        assert process.stdout.readline() == "mine\n"
        yield process.stdin.close
        process.kill()


def sharing(tmp_path):
    return {
        "buffer.folder": str(tmp_path / "shared" / "buffer"),
        "sft.folder": str(tmp_path / "shared" / "coldstart"),
    }


def of(run, name):
    return {"buffer": run.buffer, "coldstart": run.cold_start}[name]


MAKERS = [("buffer", build_buffer), ("coldstart", train_cold_start)]


@pytest.mark.parametrize(("name", "make"), MAKERS)
def test_a_folder_that_another_run_is_making_is_waited_for_and_taken(
    branch, trunk, tmp_path, capsys, name, make
):
    run = branch(sharing(tmp_path))
    with another_run_makes(of(run, name)) as end:

        def finish():
            shutil.copytree(of(trunk, name), of(run, name), dirs_exist_ok=True)
            end()

        before = {path: path.read_bytes() for path in of(trunk, name).rglob("*.json")}
        timer = threading.Timer(2.0, finish)
        timer.start()
        make(run)
        timer.join()
    said = capsys.readouterr().out
    assert said.count(f"another run is making {of(run, name)}; waiting for it") == 1
    assert "demonstrations" not in said and "step traces" not in said  # nothing is made again
    for path, data in before.items():
        assert (of(run, name) / path.relative_to(of(trunk, name))).read_bytes() == data


@pytest.mark.parametrize(("name", "make"), MAKERS)
def test_a_signal_ends_the_waiting_for_another_run(branch, tmp_path, monkeypatch, name, make):
    run = branch(sharing(tmp_path))
    monkeypatch.setattr(signals, "stop_requested", lambda: True)
    with another_run_makes(of(run, name)), pytest.raises(Stopped, match="another run is making"):
        make(run)
    assert not (of(run, name) / "done.json").exists()


def test_a_finished_folder_is_taken_without_a_lock(trunk, capsys):
    with another_run_makes(trunk.buffer), another_run_makes(trunk.cold_start):
        assert build_buffer(trunk)["traces"] > 0
        train_cold_start(trunk)
    assert "waiting" not in capsys.readouterr().out


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

"""Questions of a task as array_record files."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from rapo_jax.tasks import SPLITS, TASKS
from rapo_jax.tasks.stream import load_questions, prepare_questions, question_stream


def prepared(parameters, folder):
    world = TASKS["chains"].make_world(**parameters)
    return prepare_questions("chains", parameters, world, data_dir=str(folder))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return str(tmp_path_factory.mktemp("questions"))


@pytest.fixture(scope="module")
def sources(folder, parameters):
    return prepared(parameters, folder)


def test_the_files_hold_exactly_the_questions_of_the_task(sources, world):
    for split in SPLITS:
        assert load_questions(sources[split]) == TASKS["chains"].questions(world, split)


def test_the_files_are_array_record_and_need_no_tensorflow(sources, folder):
    files = [path.name for path in Path(folder).rglob("*.array_record*")]
    assert len(files) == len(SPLITS)
    assert "tensorflow" not in sys.modules


def test_the_stream_reads_the_files(sources):
    batches = question_stream(sources["train"], seed=0, batch=8, process_index=0, process_count=1)
    rows = load_questions(sources["train"])
    assert all(question in rows for question in next(batches))


def test_other_parameters_are_another_data_set(sources, folder, parameters):
    other = prepared({**parameters, "seed": 4}, folder)
    assert load_questions(other["eval"]) != load_questions(sources["eval"])
    again = prepared(parameters, folder)
    assert load_questions(again["eval"]) == load_questions(sources["eval"])


def test_nothing_is_printed_while_the_files_are_made(tmp_path, parameters, capfd):
    prepared(parameters, tmp_path)
    captured = capfd.readouterr()
    assert captured.out + captured.err == ""


def test_reading_all_at_once_and_one_by_one_give_the_same(sources):
    train = sources["train"]
    assert list(train) == [train[index] for index in range(len(train))]


WAITING = """
import json, sys
from rapo_jax.tasks import TASKS
from rapo_jax.tasks.stream import prepare_questions
parameters = json.loads(sys.argv[2])
world = TASKS["chains"].make_world(**parameters)
sys.stdin.readline()
prepare_questions("chains", parameters, world, data_dir=sys.argv[1])
"""


def test_two_runs_that_start_together_prepare_their_questions_one_after_the_other(
    tmp_path, parameters
):
    command = [sys.executable, "-c", WAITING, str(tmp_path), json.dumps(parameters)]
    pipes = {"stdin": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, **pipes) as one, subprocess.Popen(command, **pipes) as other:
        for process in (one, other):
            process.stdin.write("go\n")
            process.stdin.flush()
        errors = [process.communicate()[1] for process in (one, other)]
    assert [one.returncode, other.returncode] == [0, 0], errors

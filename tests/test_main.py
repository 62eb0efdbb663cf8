"""The command: what it says of itself, and what it refuses before anything is compiled."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from rapo_jax.config import STAGES
from rapo_jax.config.read import read_settings
from rapo_jax.io.files import claimed
from rapo_jax.stages.job import (
    commit,
    prepare_workdir,
    run_stages,
)

ROOT = Path(__file__).parents[1]


def run(*arguments):
    command = [sys.executable, "-m", "rapo_jax.main", *arguments]
    return subprocess.run(
        command,
        cwd=ROOT,
        env=os.environ | {"XLA_FLAGS": ""},  # one device, as on a laptop
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )


def test_help_names_the_stages_and_shows_how_to_call_it():
    shown = run("--help").stdout
    for stage in STAGES:
        assert f"\n    {stage} " in shown
    assert "    rapo-jax --config=tiny --workdir=" in shown
    assert "config.rl.steps" in shown


def test_a_bad_value_ends_with_status_2_and_one_line(tmp_path):
    done = run(
        "--config=tests/small.py", f"--workdir={tmp_path / 'w'}", "--config.rollout.group_size=1"
    )
    assert done.returncode == 2 and done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: rollout.group_size=1: a group-relative advantage needs")
    assert not (tmp_path / "w").exists()


def test_user_code_that_exits_does_not_end_the_run_with_status_0(tmp_path):
    shape = dict(vocab_size=320, hidden_size=16, intermediate_size=32, num_hidden_layers=1)
    heads = dict(num_attention_heads=2, num_key_value_heads=2)
    config = {"model_type": "qwen2", "rms_norm_eps": 1e-6, "rope_theta": 1e4, **shape, **heads}
    (tmp_path / "config.json").write_text(json.dumps(config))
    flags = ("--config.task.name=tests.user_code:LEAVES", f"--config.model.folder={tmp_path}")
    stages = "--config.stages=('rl',)"
    done = run("--config=tests/small.py", f"--workdir={tmp_path / 'w'}", stages, *flags)
    assert done.returncode == 1
    message = "RuntimeError: user code ended the program with SystemExit: 0 (user_code.py, line "
    assert message in done.stderr.splitlines()[-1]


def test_what_is_missing_for_a_run_is_one_line_too(tmp_path):
    flags = ("--config.retrieval.encoder=minilm", "--config.retrieval.encoder_folder=/nowhere")
    done = run("--config=tests/small.py", f"--workdir={tmp_path}", *flags)
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].startswith("error: /nowhere/config.json: ")
    assert "Traceback" not in done.stderr


def test_a_workdir_in_which_another_process_works_is_refused(tmp_path):
    with claimed(tmp_path, key="workdir"):
        done = run("--config=tests/small.py", f"--workdir={tmp_path}")
    assert done.returncode == 2
    assert not (tmp_path / "config.json").exists()
    assert f"error: workdir={str(tmp_path)!r}: another process is at work there" in done.stderr


def test_a_misspelt_flag_is_answered_with_the_nearest_key(tmp_path):
    done = run("--config=tests/small.py", f"--workdir={tmp_path}", "--config.rl.stpes=3")
    assert (done.returncode, done.stderr) == (
        2,
        "error: --config.rl.stpes: the config has no such key; did you mean rl.steps?\n",
    )


@pytest.mark.parametrize(
    ("flag", "message"),
    [
        ("--config=tests/nosuch.py", "error: --config=tests/nosuch.py: there is no such file"),
        ("--config.rl.steps=abc", "error: --config.rl.steps=abc: expected int"),
        ("--wrkdir=x", "error: unexpected argument: --wrkdir=x; see --help"),
        ("surplus", "error: unexpected argument: surplus; see --help"),
        ("--config", "error: Missing value for flag --config; see --help"),
        ("--print_config=perhaps", "error: flag --print_config=perhaps: "),
    ],
)
def test_a_usage_error_is_one_line_and_status_2(flag, message, tmp_path):
    done = run("--config=tests/small.py", f"--workdir={tmp_path}", flag)
    (line,) = done.stderr.splitlines()
    assert done.returncode == 2 and done.stdout == "" and line.startswith(message)


def test_flags_may_come_from_a_file(tmp_path):
    (tmp_path / "flags").write_text("--config=tests/small.py\n--config.seed=3\n")
    done = run(f"--flagfile={tmp_path / 'flags'}", "--print_config", "--config.rl.m=0.25")
    assert re.search(r"^seed: 3 +# --config.seed$", done.stdout, re.M)
    assert re.search(r"^rl.m: 0.25 +# --config.rl.m$", done.stdout, re.M)


def test_a_mistake_in_a_config_file_shows_where_it_is(tmp_path):
    (tmp_path / "own.py").write_text(
        "from configs import default\n\ndef get_config():\n    return default.get_config().nosuch\n"
    )
    done = run(f"--config={tmp_path / 'own.py'}", f"--workdir={tmp_path / 'w'}")
    assert done.returncode == 1 and 'own.py", line 4' in done.stderr


def test_a_refused_value_of_a_file_is_shown_with_the_file(tmp_path):
    path = tmp_path / "over.yaml"
    path.write_text("rl.m: x")
    done = run("--config=tests/small.py", f"--workdir={tmp_path / 'w'}", f"--override={path}")
    assert (done.returncode, done.stderr) == (
        2,
        f"error: rl.m='x': expected float (from {path})\n",
    )


@pytest.mark.parametrize("missing", ["--config", "--workdir"])
def test_both_flags_are_needed(missing, tmp_path):
    flags = {"--config": "tests/small.py", "--workdir": str(tmp_path)}
    done = run(*(f"{name}={value}" for name, value in flags.items() if name != missing))
    assert done.returncode == 2
    assert f"error: {missing} is missing: " in done.stderr and "Traceback" not in done.stderr


def test_an_empty_workdir_is_not_the_current_folder():
    done = run("--config=tests/small.py", "--workdir=")
    assert done.returncode == 2 and "error: --workdir= is empty" in done.stderr


def test_the_workdir_keeps_its_config_and_the_commit(tmp_path, small_config):
    prepare_workdir(tmp_path / "new" / "run", small_config(), config_file="mine.py")
    found = json.loads((tmp_path / "new" / "run" / "config.json").read_text())
    assert found.pop("commit") == commit() and found.pop("config_file") == "mine.py"
    assert found == json.loads(json.dumps(small_config()))


@pytest.mark.parametrize("key", ["seed", "rl.m", "method", "task.chains.seed"])
def test_a_workdir_of_another_config_is_refused_with_what_differs(tmp_path, small_config, key):
    prepare_workdir(tmp_path, small_config())
    before = (tmp_path / "config.json").read_text()
    value = "grpo" if key == "method" else 7
    with pytest.raises(
        ValueError, match=rf"workdir=.*another config \({key} was [^;]*, is {value!r}\)"
    ):
        prepare_workdir(tmp_path, small_config({key: value}))
    assert (tmp_path / "config.json").read_text() == before


def test_what_changes_no_result_may_differ_between_calls(tmp_path, small_config):
    prepare_workdir(tmp_path, small_config())
    changes = {"stages": ("report",), "log.tensorboard": True, "checkpoint.every": 7}
    prepare_workdir(tmp_path, small_config(changes))
    changes = {"evaluate.suites": ("gsm8k",), "evaluate.judge.model": "m", "evaluate.samples": 4}
    prepare_workdir(tmp_path, small_config(changes))
    changes = {"evaluate.rows": 16, "rollout.slots": 4, "rl.micro_tokens": 96, "mesh.data": 1}
    prepare_workdir(tmp_path, small_config(changes))
    with pytest.raises(ValueError, match=r"another config \(evaluate.limit was 0, is 2\)"):
        prepare_workdir(tmp_path, small_config({"evaluate.limit": 2}))
    assert json.loads((tmp_path / "config.json").read_text())["evaluate"]["rows"] == 8


def test_a_workdir_from_before_there_were_suites_goes_on(tmp_path, small_config):
    prepare_workdir(tmp_path, small_config())
    path = tmp_path / "config.json"
    config = json.loads(path.read_text())
    config["evaluate"] = {key: config["evaluate"][key] for key in ("every", "limit", "rows")}
    path.write_text(json.dumps(config))
    prepare_workdir(tmp_path, small_config({"evaluate.suites": ("gsm8k",)}))


def test_the_commit_is_a_hash_that_says_whether_files_were_changed():
    found = commit()
    assert found == "" or len(found.removesuffix("+")) == 40


def test_a_run_that_cannot_be_opened_does_not_bind_its_workdir_to_the_failed_config(
    tmp_path, small_config
):
    config = small_config()  # its 2 questions cannot be spread over the 8 devices of the tests
    fresh = prepare_workdir(tmp_path, config)
    with pytest.raises(ValueError, match=r"rollout\.questions=2"):
        run_stages(read_settings(config), tmp_path, fresh=fresh)
    assert prepare_workdir(tmp_path, small_config({"rollout.questions": 8}))


def test_a_run_that_cannot_be_opened_leaves_no_tokenizer_for_the_next_config(
    tmp_path, small_config
):
    changes = {"rollout.questions": 8, "rollout.prompt_tokens": 1}
    config = small_config(changes)
    fresh = prepare_workdir(tmp_path, config)
    with pytest.raises(ValueError, match=r"rollout\.prompt_tokens=1"):
        run_stages(read_settings(config), tmp_path, fresh=fresh)
    assert not (tmp_path / "coldstart" / "tokenizer").exists()


def test_a_run_that_does_not_fit_into_memory_is_refused_before_it_starts(tmp_path, small_config):
    config = small_config({"rollout.questions": 80_000_000, "stages": ("rl",)})
    fresh = prepare_workdir(tmp_path, config)
    with pytest.raises(
        ValueError, match=r"^rollout\.questions=80000000: training needs .* lower it"
    ):
        run_stages(read_settings(config), tmp_path, fresh=fresh)
    assert not (tmp_path / "config.json").exists()


@pytest.mark.parametrize(
    ("name", "remedy"),
    [
        ("config.json", "use a new --workdir"),
        ("done.json", "created again"),
        ("result.json", "created again"),
    ],
)
def test_a_torn_file_of_a_workdir_is_named_with_what_to_do(tmp_path, small_config, name, remedy):
    config = small_config({"rollout.questions": 8})
    prepare_workdir(tmp_path, config)
    (tmp_path / name).write_text('{"stages": ["r')
    with pytest.raises(ValueError, match=rf"{name}: cut off or damaged .* {remedy}"):
        fresh = prepare_workdir(tmp_path, config)
        run_stages(read_settings(config), tmp_path, fresh=fresh)


def test_a_workdir_that_cannot_be_written_is_one_line_and_status_2(tmp_path):
    (tmp_path / "file").write_text("")
    done = run("--config=tests/small.py", f"--workdir={tmp_path / 'file' / 'w'}")
    (line,) = done.stderr.splitlines()
    assert done.returncode == 2
    assert line.startswith(f"error: workdir='{tmp_path}/file/w': cannot be written (")


def test_a_cache_that_cannot_be_written_is_one_line_and_status_2(tmp_path):
    (tmp_path / "file").write_text("")
    search = ("kind=retrieval", "url=http://127.0.0.1:9", f"cache={tmp_path}/file/search.sqlite")
    flags = [f"--config.tools.search.{each}" for each in search]
    done = run("--config=tests/small.py", f"--workdir={tmp_path / 'w'}", *flags)
    (line,) = done.stderr.splitlines()
    assert done.returncode == 2
    assert line.startswith(f"error: tools.search.cache='{tmp_path}/file/search.sqlite': cannot be")


def test_a_lock_that_cannot_be_opened_is_one_line_too(tmp_path):
    (tmp_path / ".lock").mkdir()
    done = run("--config=tests/small.py", f"--workdir={tmp_path}")
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert f"error: workdir='{tmp_path}': cannot be written (" in done.stderr


def test_print_config_shows_values_with_their_origins_and_needs_no_workdir():
    done = run("--config=tests/small.py", "--print_config", "--config.rl.m", "0.5")
    assert (done.returncode, done.stderr) == (0, "")
    found = dict(line.split("  # ") for line in done.stdout.splitlines())
    assert {key.strip(): origin for key, origin in found.items()}["rl.m: 0.5"] == "--config.rl.m"


def test_a_reader_that_has_read_enough_is_no_error():
    line = f"{sys.executable} -m rapo_jax.main --help | head -n 1; exit ${{PIPESTATUS[0]}}"
    done = subprocess.run(
        ["bash", "-c", line], cwd=ROOT, capture_output=True, text=True, check=False, timeout=60
    )
    assert (done.returncode, done.stderr) == (0, "") and done.stdout.count("\n") == 1


def test_ctrl_c_before_the_run_begins_is_one_line():
    code = (
        "import os, signal, rapo_jax.main as program\n"
        # a shell starts its background jobs with SIGINT ignored, which processes inherit
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "program.main = lambda _: os.kill(os.getpid(), signal.SIGINT)\n"
        "program.entry()\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 130
    assert (
        done.stderr == "interrupted before the run began; the same command starts or resumes it\n"
    )

"""launch/prepare: what is missing for a run and how to get it, and the exit status."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from configs import qwen7b, web7b
from rapo_jax.config.read import read_settings
from rapo_jax.run.checkpoint import Checkpoints
from rapo_jax.tasks.dataset_files import read_set
from rapo_jax.types import TrainState
from tests.launch.paper import search_server
from tests.launch.sweeps import load
from tests.model.checkpoints import make_model, save_model
from tests.search.index.corpora import build, write_corpus
from tests.tasks.published.fixtures import gsm, lines

ROOT = Path(__file__).resolve().parents[2]
LAUNCH = ROOT / "launch"

prepare = load("prepare")


def needs_list(config):
    return list(prepare.needs(read_settings(config, files=False)))


def needs_of(config):
    return {need.key: need for need in needs_list(config)}


def small_web(folder):
    """web7b with everything below `folder`."""
    config = web7b.get_config().to_dict()
    config["model"]["folder"] = f"{folder}/models/Qwen2.5-7B-Instruct"
    config["retrieval"]["encoder_folder"] = f"{folder}/models/all-MiniLM-L6-v2"
    config["task"]["dataset"]["manual_dir"] = f"{folder}/questions"
    config["tools"]["search"]["cache"] = f"{folder}/cache/web.sqlite"
    config["buffer"]["files"] = (f"{folder}/traces/web.jsonl",)
    return config


def touch(*paths):
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("{}")


def test_everything_that_is_missing_is_named_with_how_to_get_it(tmp_path, capsys):
    needs = needs_list(small_web(tmp_path))
    there = [need.key for need in needs if not need.missing]
    assert there == ["tools.search.cache", "task.metric"]
    assert prepare.report(needs) == len(needs) - 2
    out = capsys.readouterr().out
    for piece in (
        "missing model.folder: ",
        f"hf download Qwen/Qwen2.5-7B-Instruct --local-dir {tmp_path}/models/Qwen2.5-7B-Instruct",
        f"put ASearcher-Base-35k.jsonl into {tmp_path}/questions/asearcher",
        f"put sample_qa.jsonl into {tmp_path}/questions/webdancer",
        "missing task.dataset.eval: simpleqa:test",
        "missing evaluate.suites: webwalkerqa_web",
        f"put browse_comp_test_set.csv into {tmp_path}/questions/browsecomp",
        "SERPER_API_KEY",
        f"missing buffer.files: {tmp_path}/traces/web.jsonl",
        f"{len(needs) - 2} of {len(needs)} missing",
    ):
        assert piece in out, piece


def test_a_cache_of_searches_that_cannot_be_made_is_missing_and_none_is_made(tmp_path):
    config = small_web(tmp_path)
    assert needs_of(config)["tools.search.cache"].missing == ""
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "cache").write_text("a file where the folder would be")
    missing = needs_of(config)["tools.search.cache"].missing
    assert missing.startswith(f"cannot be made in {tmp_path}/cache; name a file")


def test_a_complete_setup_has_nothing_missing(paper, capsys):
    needs = needs_list(paper[1])
    assert [need for need in needs if need.missing] == []
    assert prepare.report(needs) == 0
    assert f"all {len(needs)} are there" in capsys.readouterr().out


MODEL = "models/Qwen2.5-7B-Instruct"
POINTER = f"version https://git-lfs.github.com/spec/v1\noid sha256:{'0' * 64}\nsize 9\n"


@pytest.mark.parametrize(
    ("broken", "key", "message"),
    [
        (f"{MODEL}/model-00002-of-*", "model.folder", "missing, but model.safetensors.index.json"),
        (f"{MODEL}/model-00002-of-*=pointer", "model.folder", "only a pointer of Git LFS; fetch"),
        (f"{MODEL}/model-00002-of-*=cut", "model.folder", "not a whole safetensors file"),
        (f"{MODEL}/config.json=pointer", "model.folder", "config.json: not JSON"),
        (f"{MODEL}/tokenizer.json=pointer", "tokenizer.folder", "tokenizer.json: not JSON"),
        (f"{MODEL}/tokenizer_config.json=template", "tokenizer.folder", "it has no chat template"),
        ("questions/gsm8k/test.jsonl=cut", "task.dataset.eval", "gsm8k:test has 100 questions;"),
        ("questions/toolstar/train_10k.parquet=pointer", "task.dataset.train", "train_10k.parquet"),
        ("questions/musique/musique_ans_v1.0_dev.jsonl=pointer", "evaluate.suites", "musique_ans"),
        ("models/all-MiniLM-L6-v2/model.safetensors", "retrieval.encoder_folder", "must hold it"),
        ("traces/aepo_qwen3_14b.jsonl=pointer", "buffer.files", "aepo_qwen3_14b.jsonl"),
    ],
)
def test_what_the_run_refuses_is_missing(paper, broken, key, message):
    folder, config = paper
    name, _, how = broken.partition("=")
    (file,) = folder.glob(name)
    if how == "pointer":
        file.write_text(POINTER)
    elif how == "cut":
        content = file.read_bytes()
        kept = b"\n".join(content.splitlines()[:100]) if file.suffix == ".jsonl" else content[:90]
        file.write_bytes(kept)
    elif how == "template":
        file.write_text(json.dumps(json.loads(file.read_text()) | {"chat_template": None}))
    else:
        file.unlink()
    missing = [need for need in needs_list(config) if need.missing]
    assert key in {need.key for need in missing}
    assert any(message in need.missing for need in missing)


def test_questions_whose_prompts_are_too_long_are_named_or_left_out_as_by_the_run(paper):
    folder, config = paper
    path = folder / "questions" / "gsm8k" / "test.jsonl"
    first, *others = path.read_text().splitlines()
    long = json.loads(first) | {"question": "eggs? " * config["rollout"]["prompt_tokens"]}
    path.write_text("\n".join([json.dumps(long), *others]))
    config["task"]["too_long"] = "fail"
    (need,) = [need for need in needs_list(config) if need.missing]
    assert need.key == "rollout.prompt_tokens"
    assert "1 of the " in need.missing and "task.too_long='skip'" in need.missing
    config["task"]["too_long"] = "skip"
    assert [need for need in needs_list(config) if need.missing] == []


def test_a_user_task_is_loaded_as_by_the_run(small_config):
    changes = {"task.name": "nosuch:TASK", "stages": ("rl",)}
    assert "there is no module nosuch" in needs_of(small_config(changes))["task.name"].missing
    changes["task.name"] = "tests.user_code:NEIGHBOURS"
    assert "model.folder" in needs_of(small_config(changes))["task.name"].missing


def test_a_tool_that_is_no_pair_is_missing_and_no_traceback(small_config):
    needs = needs_of(small_config({"tools.user_tools": (("alone",),)}))
    assert "tools.user_tools=('alone',): write pairs" in needs["task.name"].missing


def test_a_retrieval_server_must_respond(tmp_path):
    config = qwen7b.get_config().to_dict()
    with search_server(tmp_path) as url:
        config["tools"]["search"] |= {"url": url, "cache": ""}
        assert needs_of(config)["tools.search"].missing == ""
    config["tools"]["search"]["deadline_s"] = 0.2
    need = needs_of(config)["tools.search"]
    assert "no retrieval service answers" in need.missing and "rapo_jax.search.server" in need.how


def test_questions_a_corpus_and_a_finished_buffer_are_checked(tmp_path):
    config = qwen7b.get_config().to_dict()
    config["task"]["dataset"] |= {"train": f"{tmp_path}/a.jsonl[:5]", "eval": f"{tmp_path}/b.jsonl"}
    config["task"]["dataset"]["documents"] = f"{tmp_path}/corpus.jsonl"
    config["tools"]["search"]["kind"] = "local"
    config["buffer"]["folder"] = str(tmp_path / "buffer")
    lines(tmp_path / "a.jsonl", [gsm(n) for n in range(5)])
    touch(tmp_path / "buffer" / "done.json")
    needs = needs_of(config)
    assert needs["task.dataset.train"].missing == "" == needs["buffer.folder"].missing
    assert needs["task.dataset.eval"].missing.startswith("there is no such file")
    assert "your passages" in needs["task.dataset.documents"].how
    assert "buffer.files" not in needs


def test_each_suite_is_checked_and_only_if_it_is_evaluated(tmp_path):
    config = qwen7b.get_config().to_dict()
    lines(tmp_path / "mine.jsonl", [{"question": "Who?", "answer": "A"}])
    lines(tmp_path / "q" / "gsm8k" / "test.jsonl", [gsm(n) for n in range(5)])
    wanted = ("gsm8k[:5]", f"{tmp_path}/mine.jsonl", "gaia:level1", "nosuch")
    config["evaluate"] |= {"suites": wanted, "manual_dir": f"{tmp_path}/q"}

    def suites():
        return [x for x in needs_list(config) if x.key == "evaluate.suites"]

    gone = [need.missing for need in suites()]
    assert gone[:2] == ["", ""] and "metadata" in gone[2] and "there is no such suite" in gone[3]
    config["stages"] = ("buffer", "rl")
    assert suites() == []


def test_each_agent_of_the_buffer_has_its_needs(tmp_path, monkeypatch):
    config = qwen7b.get_config().to_dict()
    save_model(make_model("qwen2"), tmp_path / "hf")
    store = Checkpoints(tmp_path / "run" / "checkpoints", keep=1)
    store.save(1, TrainState({"a": np.zeros(2)}, (), np.int32(1)), {})
    store.close()
    touch(tmp_path / "untrained" / "config.json")
    config["buffer"] |= {
        "agent": "checkpoint,endpoint",
        "checkpoint": ",".join(f"{tmp_path}/{name}" for name in ("hf", "run", "untrained", "gone")),
        "files": (),
    }
    config["buffer"]["endpoint"] |= {
        "url": "http://localhost:9/v1",
        "model": "m",
        "key_variable": "RAPO_TEST_KEY",
    }
    needs = [x for x in needs_list(config) if x.key.startswith("buffer.")]
    assert [x.key for x in needs] == 4 * ["buffer.checkpoint"] + ["buffer.endpoint.key_variable"]
    assert [bool(x.missing) for x in needs] == [False, False, True, True, True]
    assert needs[-1].what == "RAPO_TEST_KEY" and "not set" in needs[-1].missing
    monkeypatch.setenv("RAPO_TEST_KEY", "secret")
    assert needs_of(config)["buffer.endpoint.key_variable"].missing == ""


def test_an_index_on_disk_is_checked_instead_of_a_corpus(tmp_path):
    config = qwen7b.get_config().to_dict()
    config["tools"]["search"] |= {"kind": "local", "index": f"{tmp_path}/index", "cache": ""}
    needs = needs_of(config)
    assert "task.dataset.documents" not in needs
    assert "('search_index',)" in needs["tools.search.index"].how
    corpus = write_corpus(tmp_path / "corpus.jsonl", [{"id": 1, "contents": "A is b."}])
    build(corpus, tmp_path / "index")
    assert needs_of(config)["tools.search.index"].missing == ""


def test_a_trajectory_without_answers_may_be_of_a_training_question(paper):
    _, config = paper
    d = config["task"]["dataset"]
    how = {"manual_dir": d["manual_dir"], "malformed": d["malformed"]}
    asked = read_set(d["train"], key="task.dataset.train", **how).questions[0]
    (file,) = config["buffer"]["files"]
    record = {"question": asked.question, "response": "<think>so</think><answer>1</answer>"}
    Path(file).write_text(json.dumps(record) + "\n")
    assert needs_of(config)["buffer.files"].missing == ""
    Path(file).write_text(json.dumps(record | {"question": "another?"}) + "\n")
    assert "neither reward nor answers" in needs_of(config)["buffer.files"].missing


def test_a_config_file_imports_what_is_beside_it_as_in_a_run(tmp_path):
    (tmp_path / "base.py").write_text("from configs.tiny import get_config as tiny\n")
    (tmp_path / "mine.py").write_text("import base\n\ndef get_config():\n    return base.tiny()\n")
    command = [sys.executable, LAUNCH / "prepare.py", "--config=mine.py"]
    done = subprocess.run(command, cwd=tmp_path, env=os.environ | {"PYTHONPATH": str(ROOT)},
                          capture_output=True, text=True, check=False)  # fmt: skip
    assert done.returncode == 0, done.stderr


def test_the_program_exits_1_if_something_is_missing_and_2_if_the_config_is_not_valid(capsys):
    def run(*flags):
        command = [sys.executable, LAUNCH / "prepare.py", "--config=configs/qwen7b.py", *flags]
        done = subprocess.run(command, cwd=ROOT, env={"PYTHONPATH": str(ROOT), "RAPO_DATA": "/no"},
                              capture_output=True, text=True, check=False)  # fmt: skip
        return done.returncode, done.stdout + done.stderr

    status, output = run("--config.tools.search.kind=serper")
    assert status == 1 and "--local-dir /no/models/Qwen2.5-7B-Instruct" in output
    status, output = run("--config.rollout.gruop_size=1")
    assert status == 2 and output.startswith("error: --config.rollout.gruop_size: ")
    assert "Traceback" not in output
    with pytest.raises(SystemExit, match="^2$"):
        prepare.main(["--config=qwen7b", "--config.rollout.group_size=1"])
    assert capsys.readouterr().err.startswith("error: rollout.group_size=1: ")


@pytest.mark.parametrize(
    ("given", "passed"),
    [
        (["c.py", "--config.a=1"], ["--config=c.py", "--config.a=1"]),
        (["--config=c.py"], ["--config=c.py"]),
        ([], []),
    ],
)
def test_the_script_takes_the_config_first_and_passes_flags_and_status_on(tmp_path, given, passed):
    (tmp_path / "launch").mkdir()
    shutil.copy(LAUNCH / "prepare.sh", tmp_path / "launch" / "prepare.sh")
    (tmp_path / "launch" / "setup.sh").write_text('cd "$(dirname "${BASH_SOURCE[0]}")/.."\n')
    python = tmp_path / ".venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text('#!/bin/sh\nshift\necho "$@"\nexit 7\n')
    python.chmod(0o755)
    command = ["bash", str(tmp_path / "launch" / "prepare.sh"), *given]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout.split()) == (7, passed)

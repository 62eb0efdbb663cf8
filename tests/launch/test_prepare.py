"""launch/prepare: what is missing for a run and how to get it, and the exit status."""

from __future__ import annotations

import importlib
import importlib.util
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from configs import qwen7b, web7b
from rapo_jax.search.corpus import exact_search, read_corpus
from rapo_jax.search.index.files import MANIFEST
from rapo_jax.search.server import SearchServer

ROOT = Path(__file__).resolve().parents[2]
LAUNCH = ROOT / "launch"

_spec = importlib.util.spec_from_file_location("prepare", LAUNCH / "prepare.py")
prepare = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(prepare)


def needs_of(config):
    return {need.key: need for need in prepare.needs(prepare.read(config))}


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
    needs = list(prepare.needs(prepare.read(small_web(tmp_path))))
    assert all(need.missing for need in needs)
    assert prepare.report(needs) == len(needs)
    out = capsys.readouterr().out
    for piece in (
        "missing model.folder: ",
        f"hf download Qwen/Qwen2.5-7B-Instruct --local-dir {tmp_path}/models/Qwen2.5-7B-Instruct",
        f"put ASearcher-Base-35k.jsonl into {tmp_path}/questions/asearcher",
        f"put sample_qa.jsonl into {tmp_path}/questions/webdancer",
        "missing task.dataset.eval: simpleqa:test",
        "missing evaluate.suites: webwalkerqa_web",
        f"put browse_comp_test_set.csv into {tmp_path}/questions/browsecomp",
        f"mkdir -p {tmp_path}/cache",
        "SERPER_API_KEY",
        f"missing buffer.files: {tmp_path}/traces/web.jsonl",
        f"{len(needs)} of {len(needs)} missing",
    ):
        assert piece in out, piece


def test_a_complete_setup_has_nothing_missing(tmp_path, capsys):
    config = small_web(tmp_path)
    model, encoder = tmp_path / "models/Qwen2.5-7B-Instruct", tmp_path / "models/all-MiniLM-L6-v2"
    for folder, weights in ((model, "model-00001-of-00002"), (encoder, "model")):
        touch(folder / "config.json", folder / f"{weights}.safetensors", folder / "tokenizer.json")
    questions = tmp_path / "questions"
    touch(
        questions / "asearcher/ASearcher-Base-35k.jsonl",
        questions / "webdancer/sample_qa.jsonl",
        questions / "simpleqa/simple_qa_test_set.csv",
        questions / "gaia/2023/validation/metadata.jsonl",
        questions / "webwalkerqa/data/main-00000-of-00001.jsonl",
        questions / "browsecomp/browse_comp_test_set.csv",
        tmp_path / "traces/web.jsonl",
    )
    config["tools"]["search"] |= {"kind": "searxng", "url": "http://127.0.0.1:9", "cache": ""}
    config["tools"]["search"]["key_variable"] = ""
    needs = list(prepare.needs(prepare.read(config)))
    assert [need for need in needs if need.missing] == []
    assert prepare.report(needs) == 0
    assert f"all {len(needs)} are there" in capsys.readouterr().out


def test_a_retrieval_server_must_respond(tmp_path):
    config = qwen7b.get_config().to_dict()
    (tmp_path / "corpus.jsonl").write_text(json.dumps({"id": 1, "contents": "A is b."}) + "\n")
    documents, _ = read_corpus(str(tmp_path / "corpus.jsonl"), malformed="fail")
    server = SearchServer(
        exact_search(documents, width=16), passages=1, topk=1, host="127.0.0.1", port=0
    )
    config["tools"]["search"] |= {"url": server.url, "cache": ""}
    assert needs_of(config)["tools.search"].missing == ""
    server.close()
    config["tools"]["search"]["deadline_s"] = 0.2
    assert "rapo_jax.search.server" in needs_of(config)["tools.search.url"].missing


def test_questions_a_corpus_and_a_finished_buffer_are_checked(tmp_path):
    config = qwen7b.get_config().to_dict()
    config["task"]["dataset"] |= {"train": f"{tmp_path}/a.jsonl[:5]", "eval": f"{tmp_path}/b.jsonl"}
    config["task"]["dataset"]["documents"] = f"{tmp_path}/corpus.jsonl"
    config["tools"]["search"]["kind"] = "local"
    config["buffer"]["folder"] = str(tmp_path / "buffer")
    touch(tmp_path / "a.jsonl", tmp_path / "buffer" / "done.json")
    needs = needs_of(config)
    assert needs["task.dataset.train"].missing == "" == needs["buffer.folder"].missing
    assert needs["task.dataset.eval"].missing.startswith("no such file")
    assert "your passages" in needs["task.dataset.documents"].missing
    assert "buffer.files" not in needs


def test_each_suite_is_checked_and_only_if_it_is_evaluated(tmp_path):
    config = qwen7b.get_config().to_dict()
    (tmp_path / "mine.jsonl").touch()
    touch(tmp_path / "q" / "gsm8k" / "test.jsonl")
    wanted = ("gsm8k[:5]", f"{tmp_path}/mine.jsonl", "gaia:level1", "nosuch")
    config["evaluate"] |= {"suites": wanted, "manual_dir": f"{tmp_path}/q"}

    def suites():
        return [x for x in prepare.needs(prepare.read(config)) if x.key == "evaluate.suites"]

    gone = [need.missing for need in suites()]
    assert gone[:2] == ["", ""] and "metadata" in gone[2] and gone[3].startswith("no such file")
    config["stages"] = ("buffer", "rl")
    assert suites() == []


def test_each_agent_of_the_buffer_has_its_needs(tmp_path, monkeypatch):
    config = qwen7b.get_config().to_dict()
    touch(tmp_path / "hf" / "model.safetensors", tmp_path / "untrained" / "config.json")
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
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
    needs = [x for x in prepare.needs(prepare.read(config)) if x.key.startswith("buffer.")]
    assert [x.key for x in needs] == 4 * ["buffer.checkpoint"] + ["buffer.endpoint.key_variable"]
    assert [bool(x.missing) for x in needs] == [False, False, True, True, True]
    assert needs[-1].missing == "export RAPO_TEST_KEY=…"
    monkeypatch.setenv("RAPO_TEST_KEY", "secret")
    assert needs_of(config)["buffer.endpoint.key_variable"].missing == ""


def test_an_index_on_disk_is_checked_instead_of_a_corpus(tmp_path):
    config = qwen7b.get_config().to_dict()
    config["tools"]["search"] |= {"kind": "local", "index": f"{tmp_path}/index", "cache": ""}
    needs = needs_of(config)
    assert "task.dataset.documents" not in needs
    assert "('search_index',)" in needs["tools.search.index"].missing
    touch(tmp_path / "index" / MANIFEST)
    assert needs_of(config)["tools.search.index"].missing == ""


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

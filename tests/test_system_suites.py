"""The command on a Hugging Face folder alone: suites from files, again, and what it refuses."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from rapo_jax.text.condensing import NOTHING_HELPFUL
from rapo_jax.text.protocols import SEARCH_R1
from rapo_jax.text.tokens import build_tokenizer, load_tokens
from tests.model.checkpoints import make_model, save_model
from tests.tasks.published.fixtures import gsm, lines
from tests.text.test_chat import PUBLISHED, make

ROOT = Path(__file__).parents[1]
WORDS = ("Anna", "Bob", "Carla", "Dora", "Emil")


@pytest.fixture(scope="module")
def flags(tmp_path_factory):
    """Of a random tiny model, a corpus, a file of questions and GSM8K in its publisher's layout."""
    folder = tmp_path_factory.mktemp("given")
    model = folder / "model"
    save_model(make_model("qwen2_tied", vocab_size=320), model)
    asked = [{"question": f"Who sees {word}?", "answers": [word, "nobody"]} for word in WORDS]
    corpus = [{"id": n, "contents": f"{word} is here"} for n, word in enumerate(WORDS)]
    lines(folder / "own.jsonl", asked)
    lines(folder / "corpus.jsonl", corpus)
    lines(folder / "manual" / "gsm8k" / "test.jsonl", [gsm(n) for n in range(3)])
    build_tokenizer(model, [x["question"] for x in asked] * 9, vocab_size=320)
    suites = ("gsm8k", str(folder / "own.jsonl[:4]"))
    return (
        "--config=tests/small.py", "--config.stages=('evaluate','report')",
        f"--config.model.folder={model}", "--config.task.name=dataset",
        f"--config.task.dataset.documents={folder / 'corpus.jsonl'}",
        f"--config.evaluate.manual_dir={folder / 'manual'}", f"--config.evaluate.suites={suites}",
        "--config.prompt.system=use tools", "--config.rollout.prompt_tokens=60",
        "--config.evaluate.rows=2", "--config.rollout.max_calls=1", "--config.evaluate.every=3",
    )  # fmt: skip


def run(workdir, *flags):
    return subprocess.run(
        [sys.executable, "-m", "rapo_jax.main", f"--workdir={workdir}", *flags],
        cwd=ROOT,
        env=os.environ | {"XLA_FLAGS": ""},  # one device, as on a laptop
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )


def test_suites_of_a_folder_are_evaluated_once_and_told_in_files_table_and_report(flags, tmp_path):
    done = run(tmp_path, *flags)
    assert done.returncode == 0, done.stderr[-3000:]
    result = json.loads((tmp_path / "result.json").read_text())
    assert {name: x["questions"] for name, x in result["suites"].items()} == {
        "gsm8k": 3, "own-first4": 4,
    }  # fmt: skip
    assert "accuracy_after" not in result  # the task's own questions were not asked for
    assert sum(result["suites"]["gsm8k"]["kinds"].values()) == 3
    rows = [json.loads(line) for line in (tmp_path / "suites" / "own-first4.jsonl").open()]
    assert [row["gold"] for row in rows] == [[word, "nobody"] for word in WORDS[:4]]
    assert all(row["tokens"] > 0 for row in rows)
    assert "ETA" in done.stdout and "[suites] gsm8k: math " in done.stdout
    assert "| gsm8k | 3 | math | " in (tmp_path / "suites" / "table.md").read_text()
    assert 'id="suites"' in (tmp_path / "report.html").read_text()

    before = {path: path.read_bytes() for path in (tmp_path / "suites").iterdir()}
    again = run(tmp_path, *flags, "--config.evaluate.scoring=strict")  # no new sample
    assert again.returncode == 0, again.stderr[-3000:]
    assert "ETA" not in again.stdout
    texts = [json.loads(line)["text"] for line in (tmp_path / "suites" / "gsm8k.jsonl").open()]
    old = before[tmp_path / "suites" / "gsm8k.jsonl"].decode().splitlines()
    assert texts == [json.loads(line)["text"] for line in old]


def test_an_unknown_suite_is_one_line_and_binds_no_workdir(flags, tmp_path):
    done = run(tmp_path, *flags, "--config.evaluate.suites=('hotpot_qa',)")
    assert done.returncode == 2 and "Traceback" not in done.stderr
    line = done.stderr.splitlines()[-1]
    assert line.startswith("error: evaluate.suites='hotpot_qa': there is no such suite")
    assert "did you mean 'hotpotqa'?" in line
    assert not (tmp_path / "config.json").exists()


def test_a_folder_is_evaluated_in_the_protocol_of_search_r1(flags, tmp_path):
    """A random model writes no action: it gets the corrective reply, and has no answer."""
    room = {"prompt_tokens": 900, "observation_tokens": 250, "step_tokens": 12, "max_tokens": 1400}
    done = run(
        tmp_path,
        *flags,
        "--config.protocol=search_r1",
        "--config.prompt.system=",
        "--config.rl.buckets=(1400,)",
        *(f"--config.rollout.{key}={value}" for key, value in room.items()),
    )
    assert done.returncode == 0, done.stderr[-3000:]
    rows = [json.loads(line) for line in (tmp_path / "suites" / "own-first4.jsonl").open()]
    assert all(SEARCH_R1.corrective in row["text"] for row in rows if row["calls"])
    assert {"invalid": 1} in [row["calls"] for row in rows]
    result = json.loads((tmp_path / "result.json").read_text())
    assert result["suites"]["gsm8k"]["method"] == "search_r1"
    assert "Paper: Search-R1 on " in (tmp_path / "suites" / "table.md").read_text()


def test_a_folder_is_evaluated_in_the_protocol_of_search_o1_from_python_alone(flags, tmp_path):
    """A random model with a vocabulary of searches, and of what it makes of their documents."""
    searches = [f"<|begin_search_query|>{n}<|end_search_query|>" for n in range(300)]
    markers = [f"**Final Information** told {n}." for n in range(200)]
    control, ordinary, end, template = PUBLISHED["qwen2.5"]
    folder, work = tmp_path / "model", tmp_path / "run"
    folder.mkdir()
    make(folder, control, (*ordinary, *searches, *markers), end, template)
    size = len(load_tokens(folder).bytes_V)
    save_model(make_model("qwen2_tied", vocab_size=size), folder)
    room = {
        "prompt_tokens": 900, "observation_tokens": 250, "step_tokens": 12, "max_tokens": 3000,
        "condense_tokens": 8,
    }  # fmt: skip
    flags = [
        *flags, "--config.protocol=search_o1", "--config.prompt.system=",
        "--config.rl.buckets=(3000,)", f"--config.model.folder={folder}",
        "--config.evaluate.temperature=1.0",
        *(f"--config.rollout.{key}={value}" for key, value in room.items()),
    ]  # fmt: skip
    refused = run(work, *flags)
    line = refused.stderr.splitlines()[-1]
    assert line.startswith("error: rollout.driver='jit': protocol='search_o1' samples the model")
    done = run(work, *flags, "--config.rollout.driver=host")
    assert done.returncode == 0, done.stderr[-3000:]
    rows = [json.loads(row) for row in (work / "suites" / "own-first4.jsonl").open()]
    assert any("search" in row["calls"] for row in rows)
    told = "<|begin_search_result|>told "
    assert any(told in row["text"] or NOTHING_HELPFUL in row["text"] for row in rows)
    assert "is here" not in "".join(row["text"] for row in rows)  # the documents themselves
    assert "[condensing] " in done.stdout
    result = json.loads((work / "result.json").read_text())
    assert result["suites"]["gsm8k"]["method"] == "search_o1"

"""A run over files of questions: RL from a Hugging Face folder and brought traces, evaluation."""

from __future__ import annotations

import json
import math

import jax
import pytest

from rapo_jax.run.run import open_run
from rapo_jax.stages.table import JOB_STAGES, Job
from rapo_jax.text.tokens import build_tokenizer
from tests.model.checkpoints import make_model, save_model

WORDS = ("Anna", "Bob", "Carla", "Dora")
TRAIN = [{"question": f"Who is next to {word}?", "answer": word} for word in WORDS]
EVAL = [{"question": f"Who sees {word}?", "answers": [word, "nobody"]} for word in WORDS[:3]]
CORPUS = [{"id": n, "contents": f"{word} is next to {word}"} for n, word in enumerate(WORDS)]
TRACES = [
    {
        "question": question["question"],
        "response": "<think>look</think><search>next to</search><result>Bob is next to Bob</result>"
        f"<think>so</think><answer>\\boxed{{{question['answer']}}}</answer>",
    }
    for question in TRAIN
]


TOO_LONG = {"question": "who? " * 40, "answer": "Ann"}


def write(path, records):
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return str(path)


@pytest.fixture(scope="module")
def named(tmp_path_factory):
    """Config keys of the files of a run: questions, corpus, traces, and a random tiny model."""
    folder = tmp_path_factory.mktemp("own")
    model = folder / "model"
    save_model(make_model("qwen2_tied", vocab_size=320), model)
    lines = [str(x) for record in [*TRAIN, *EVAL, *CORPUS, *TRACES] * 2 for x in record.values()]
    build_tokenizer(model, lines, vocab_size=320)
    return {
        "task.name": "dataset",
        "task.dataset.train": write(
            folder / "train.jsonl", [*TRAIN, TOO_LONG, {"question": "no answer"}]
        ),
        "task.dataset.eval": write(folder / "eval.jsonl", EVAL),
        "task.dataset.documents": write(folder / "corpus.jsonl", CORPUS),
        "model.folder": str(model),
        "buffer.agent": "none",
        "buffer.files": (write(folder / "traces.jsonl", TRACES),),
        "prompt.system": "use tools",
        "stages": ("buffer", "rl", "evaluate"),
        "rollout.driver": "host",
        "rollout.prompt_tokens": 40,
        "rollout.max_tokens": 120,
        "rollout.max_calls": 2,
        "rl.buckets": (120,),
        "evaluate.rows": 2,
    }


def test_rl_and_evaluation_run_on_files_of_questions(named, small_settings, tmp_path, capsys):
    run = open_run(small_settings(named), tmp_path, devices=jax.devices()[:1])
    job = Job(run)
    for name in ("buffer", "rl", "evaluate"):
        with job.timed(name):
            JOB_STAGES[name](job)
    run.close()
    found = json.loads((tmp_path / "result.json").read_text())
    assert (found["counts"]["rl_steps"], found["questions"]) == (2, len(EVAL))
    assert found["counts"]["traces"] == 2 * len(TRACES)
    assert "cold_start" not in found  # no gate can be measured
    assert 0.0 <= found["accuracy_after"] <= 1.0
    asked = [json.loads(line) for line in (tmp_path / "trajectories.jsonl").open()]
    assert {row["question"] for row in asked} <= {record["question"] for record in TRAIN}
    metrics = [json.loads(line) for line in (tmp_path / "metrics.jsonl").open()]
    steps = [row for row in metrics if row["stage"] == "rl"]
    assert len(steps) == 2
    assert all(math.isfinite(row["reward/mean"]) for row in steps if "reward/mean" in row)
    told = capsys.readouterr().out
    assert found["counts"]["too_long"] == {"train": 1, "expert": 1}
    assert "1 of the 5 questions of 'train' have a longer prompt" in told
    assert "train.jsonl: 5 records of 6 lines, 1 malformed (line 6: no answer and no ans" in told


def test_the_search_of_a_data_set_finds_its_own_documents(named, small_settings, tmp_path):
    run = open_run(small_settings(named), tmp_path, devices=jax.devices()[:1])
    (found,) = run.tools["search"](["Carla next"])
    assert "Carla is next to Carla" in found.text
    run.close()

"""task.metric and tools.search reach training, evaluation and the tools of a run."""

from __future__ import annotations

import dataclasses

import jax
import numpy as np
import pytest

from rapo_jax.run.policy import load_policy
from rapo_jax.run.run import open_run
from rapo_jax.sampling.tapes import segments, text_without_retrieved
from rapo_jax.search.batches import Document
from rapo_jax.search.server import SearchServer
from rapo_jax.tasks import answer_of, outcome_reward
from rapo_jax.tasks.stream import load_questions
from rapo_jax.train.evaluate import evaluate
from rapo_jax.train.rl import train_rl


@pytest.fixture(scope="module")
def asked(trunk):
    """Questions whose gold answers share a word with the policy's, without being equal."""
    questions = load_questions(trunk.questions["eval"])[:8]
    trajectory = trunk.sampler.sample(
        trunk.sampler.load(load_policy(trunk, trunk.cold_start)),
        jax.random.key(9),
        questions,
        group_size=1,
        n_hybrid=0,
        temperature=0.0,
    )
    texts = [text_without_retrieved(segments(trunk.tokens, trajectory, b)) for b in range(8)]
    changed = [
        dataclasses.replace(q, answers=(f"{answer_of(text)} indeed",))
        for q, text in zip(questions, texts, strict=True)
    ]
    assert any(outcome_reward(t, q.answers) > 0 for t, q in zip(texts, changed, strict=True))
    return changed, texts


@pytest.mark.parametrize("metric", ["f1", "math"])
def test_evaluation_scores_with_the_metric_of_the_task(branch, trunk, asked, metric):
    questions, texts = asked
    found = evaluate(
        branch({"task.metric": metric}), load_policy(trunk, trunk.cold_start), questions
    )
    wanted = [
        outcome_reward(text, q.answers, metric=metric)
        for text, q in zip(texts, questions, strict=True)
    ]
    assert found["reward"] == pytest.approx(np.mean(wanted))


@pytest.mark.parametrize("metric", ["f1", "math"])
def test_training_scores_with_the_metric_of_the_task(branch, metrics_of, metric):
    """A gold answer of every word there is: each answer shares one with it, and none is equal."""
    run = branch({"task.metric": metric, "rl.steps": 1})
    words = " ".join(sorted({w for text in run.task.corpus(run.world) for w in text.split()}))
    asked = [
        dataclasses.replace(q, answers=(words,)) for q in load_questions(run.questions["train"])
    ]
    train_rl(dataclasses.replace(run, questions=run.questions | {"train": asked}))
    row = metrics_of(run.workdir)[0]
    assert row["reward/accuracy"] == 0 and row["reward/format_bad"] < 1
    from_answers = row["reward/mean"] + row["reward/format_bad"]
    assert (from_answers > 0) == (metric == "f1")


def test_a_run_searches_where_its_config_says(small_settings, tmp_path):
    def search(queries, topk):
        return [[(Document("1", " ".join(["word"] * 200)), 1.0)] for _ in queries]

    server = SearchServer(search, passages=1, topk=1, host="127.0.0.1", port=0)
    changes = {"tools.search.kind": "retrieval", "tools.search.url": server.url}
    run = open_run(small_settings(changes), tmp_path, devices=jax.devices()[:1])
    (found,) = run.tools["search"](["anything"])
    assert found.outcome == "ok" and found.text.startswith("[1] word")
    assert len(found.text.split()) < 12  # tokens, rollout.observation_tokens
    run.close()
    server.close()

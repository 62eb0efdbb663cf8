"""Evaluation: greedy, without retrieval, every question once."""

from __future__ import annotations

import shutil
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rapo_jax.run.policy import load_policy
from rapo_jax.sampling.tapes import segments, text_without_retrieved
from rapo_jax.stages.gates import check_cold_start
from rapo_jax.tasks import is_correct, outcome_reward
from rapo_jax.tasks.stream import load_questions
from rapo_jax.train.evaluate import evaluate, spread
from rapo_jax.types import Source


@pytest.mark.parametrize(
    ("limit", "found"), [(0, "abcdefg"), (7, "abcdefg"), (9, "abcdefg"), (3, "adg"), (1, "a")]
)
def test_a_limit_keeps_questions_evenly_spread_over_the_list(limit, found):
    assert spread(list("abcdefg"), limit) == list(found)


@pytest.fixture(scope="module")
def params(trunk):
    return load_policy(trunk, trunk.cold_start)


def test_every_question_counts_once_though_rows_are_padded(trunk, params):
    questions = load_questions(trunk.questions["eval"])[:11]  # rows: 8
    found = evaluate(trunk, params, questions, temperature=1.0)
    assert found["questions"] == 11 == sum(found["endings"].values())
    kinds = {question.kind for question in questions}
    assert set(found["accuracy_by_kind"]) == kinds
    assert "hidden" not in found  # the small world has no hidden words


def test_the_numbers_are_those_of_the_greedy_tapes(trunk, params):
    questions = load_questions(trunk.questions["eval"])[::4][:8]
    loaded = trunk.sampler.load(params)
    trajectory = trunk.sampler.sample(
        loaded, jax.random.key(9), questions, group_size=1, n_hybrid=0, temperature=0.0
    )
    assert not (trajectory.source_BT == Source.RETRIEVED).any()
    texts = [text_without_retrieved(segments(trunk.tokens, trajectory, b)) for b in range(8)]
    pairs = list(zip(texts, questions, strict=True))
    found = evaluate(trunk, params, questions)
    wanted = np.mean([is_correct(text, q.answers) for text, q in pairs])
    assert found["accuracy"] == pytest.approx(wanted)
    wanted = np.mean([outcome_reward(text, q.answers) for text, q in pairs])
    assert found["reward"] == pytest.approx(wanted)
    response_BT = trajectory.source_BT > Source.PROMPT
    assert found["tokens"] == pytest.approx(response_BT.sum(axis=1).mean())


def test_greedy_evaluation_is_the_same_every_time_and_leaves_no_counts(trunk, params):
    questions = load_questions(trunk.questions["eval"])[:8]
    assert evaluate(trunk, params, questions) == evaluate(trunk, params, questions)
    assert "search" not in trunk.environment.take_counts()


def test_questions_of_several_sets_have_an_accuracy_of_each_set(trunk, params):
    questions = load_questions(trunk.questions["eval"])[:8]
    whole = evaluate(trunk, params, questions)
    assert "accuracy_by_set" not in whole and "samples" not in whole
    sets = [replace(q, source="ab"[i % 4 == 3]) for i, q in enumerate(questions)]
    by_set = evaluate(trunk, params, sets)["accuracy_by_set"]
    assert (6 * by_set["a"] + 2 * by_set["b"]) / 8 == pytest.approx(whole["accuracy"])
    ids = [replace(q, source=str(i)) for i, q in enumerate(questions * 5)]  # 40 sets: an id each
    assert "accuracy_by_set" not in evaluate(trunk, params, ids)


def test_some_responses_are_returned_as_text_evenly_spread_over_the_questions(trunk, params):
    questions = load_questions(trunk.questions["eval"])[:11]  # rows: 8
    samples = evaluate(trunk, params, questions, samples=3)["samples"]
    assert [each["question_id"] for each in samples] == [questions[i].id for i in (0, 5, 10)]
    for each in samples:
        text = "".join(part["text"] for part in each["segments"])
        question = next(q for q in questions if q.id == each["question_id"])
        assert each["reward"] == outcome_reward(text, question.answers)
        assert {part["source"] for part in each["segments"]} <= {"POLICY", "TOOL"}


def test_no_question_at_all_is_refused(trunk, params):
    with pytest.raises(ValueError, match="no question to evaluate on"):
        evaluate(trunk, params, [])


def test_a_cold_start_below_a_gate_is_refused_with_what_it_reached(branch):
    run = branch({"sft.gate_one_hop": 1.0})
    with pytest.raises(ValueError, match=r"sft.gate_one_hop=1.0: the cold start reached 0\.\d+"):
        check_cold_start(run)
    found = check_cold_start(branch({"sft.gate_one_hop": 0.0}))  # measured once, kept
    assert set(found) == {"one_hop", "follow"}
    assert (run.cold_start / "gates.json").is_file()


def test_whether_steps_are_followed_is_measured_where_some_are_retrieved(branch, tmp_path):
    copied = {"sft.folder": str(tmp_path / "start"), "sft.gate_follow": 0.0}
    without_gates = shutil.ignore_patterns("gates.json")
    shutil.copytree(branch().cold_start, tmp_path / "start", ignore=without_gates)
    for changes in ({"method": "grpo"}, {"rollout.n_hybrid": 0}):
        run = branch(copied | changes | {"buffer.folder": str(tmp_path / "none")})
        assert set(check_cold_start(run)) == {"one_hop"}
    assert set(check_cold_start(branch(copied))) == {"one_hop", "follow"}


def test_a_missing_checkpoint_and_one_of_another_shape_are_refused(branch, tmp_path):
    with pytest.raises(ValueError, match="no checkpoint there; name a workdir, a cold start"):
        load_policy(branch(), tmp_path / "nothing")
    run = branch()
    import dataclasses

    wider = dataclasses.replace(run, model=dataclasses.replace(run.model, width=24))
    with pytest.raises(ValueError, match=r"parameter \[.*has shape .*config.model needs"):
        load_policy(wider, run.cold_start)
    assert jnp.isfinite(jax.tree.leaves(load_policy(run, run.cold_start))[0]).all()

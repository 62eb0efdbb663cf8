"""What a policy ends its response with is no part of what is scored, kept or predicted."""

from __future__ import annotations

import dataclasses

import jax
import numpy as np
import pytest

from rapo_jax.sampling.batches import row_questions
from rapo_jax.stages.buffer import build_buffer
from rapo_jax.stages.buffer_sources import sample_agents
from rapo_jax.stages.suites import evaluate_suites, open_suites
from rapo_jax.tasks import Question
from rapo_jax.train.buffer import read_trajectories
from rapo_jax.train.measures import score_rows
from rapo_jax.types import Source, Status, Trajectory
from tests.stages.test_suites import rows_of
from tests.tasks.published.fixtures import lines


class Saying:
    """A sampler whose policy says one text and then ends its row."""

    def __init__(self, run, text):
        self._run = run
        self._said = [*run.tokens.encode(text), run.tokens.eos_ids[0]]

    def load(self, params):
        return params

    def sample(self, params, key, questions, *, group_size=1, **_):
        rows = row_questions(questions, group_size)
        self._run.environment.begin(rows)
        prompt = self._run.tokens.prompt_ids(self._run.system, "who ?")
        count, width = len(rows), len(prompt) + len(self._said)
        sources = [Source.PROMPT] * len(prompt) + [Source.POLICY] * len(self._said)
        blank = np.zeros((count, width), np.float32)
        return Trajectory(
            token_BT=np.tile(np.array([*prompt, *self._said], np.int32), (count, 1)),
            source_BT=np.tile(np.array(sources, np.int32), (count, 1)),
            step_BT=np.zeros((count, width), np.int32),
            logp_BT=blank,
            entropy_BT=blank,
            status_B=np.full(count, Status.STOPPED),
            length_B=np.full(count, width),
        )


def saying(run, text):
    return dataclasses.replace(run, sampler=Saying(run, text))


@pytest.mark.parametrize(
    ("text", "gold", "metric"),
    [("ANSWER: Paris", "Paris", "f1"), ("So it is\n\nParis", "So it is Paris", "f1"),
     ("42", "42", "math"), ("ANSWER: 42", "42", "math")],
)  # fmt: skip
def test_a_suites_answer_without_a_box_is_right_though_the_model_ended_its_turn(
    branch, tmp_path, text, gold, metric
):
    lines(tmp_path / "made.jsonl", [{"id": "1", "question": "who ?", "answers": [gold]}])
    changes = {"evaluate.suites": (str(tmp_path / "made.jsonl"),), "task.metric": metric}
    run = branch(changes)
    evaluate_suites(saying(run, text), open_suites(run.settings, run.workdir), {})
    (row,) = rows_of(run.workdir, "made")
    assert (row["text"], row["score"], row["scores"]["exact"]) == (text, 1.0, 1.0)


def test_a_response_of_the_end_alone_has_no_answer_that_a_judge_would_be_asked_about(
    branch, tmp_path
):
    lines(tmp_path / "made.jsonl", [{"id": "1", "question": "who ?", "answers": ["Paris"]}])
    run = branch({"evaluate.suites": (str(tmp_path / "made.jsonl"),)})
    evaluate_suites(saying(run, ""), open_suites(run.settings, run.workdir), {})
    (row,) = rows_of(run.workdir, "made")
    assert (row["text"], row["prediction"], row["kind"]) == ("", "", "no answer")


def test_the_reward_of_a_response_reads_it_without_its_end(branch):
    run = branch()
    protocol = dataclasses.replace(run.tokens.protocol, answers=str)  # all of a response
    run = dataclasses.replace(run, tokens=dataclasses.replace(run.tokens, protocol=protocol))
    question = Question("1", "who ?", ("Paris",), "", "")
    tape = Saying(run, "Paris").sample({}, jax.random.key(0), [question])
    scores = score_rows(run, tape, [(0, question)])
    assert scores.reward_B.tolist() == [1.0] and scores.right_B.tolist() == [True]


def by_policy(trunk, folder):
    return {
        "buffer.folder": str(folder), "buffer.agent": "checkpoint", "buffer.questions": 2,
        "buffer.checkpoint": str(trunk.cold_start), "buffer.samples": 2,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("text", "steps"), [("<think>so</think>", ["<think>so</think>"]), ("", [])]
)
def test_a_policys_trajectory_in_the_buffer_has_no_letters_of_the_end(
    branch, trunk, tmp_path, text, steps
):
    traces, _ = sample_agents(saying(branch(by_policy(trunk, tmp_path / "b")), text))()
    assert [trace.steps for trace in traces] == 4 * [steps]
    assert {trace.reward for trace in traces} == {-1.0}


def test_a_trajectory_that_says_nothing_is_not_imitated(branch, trunk, tmp_path):
    made = tmp_path / "made.jsonl"
    lines(made, [{"question": "who ?", "response": "<think>so</think>", "reward": 0.0}])
    changes = by_policy(trunk, tmp_path / "b") | {"buffer.files": (str(made),)}
    run = branch(changes)
    manifest = build_buffer(saying(run, ""))
    assert (manifest["trajectories_sampled"], manifest["traces"]) == (5, 1)
    assert [each.steps for each in read_trajectories(run)] == [["<think>so</think>"]]

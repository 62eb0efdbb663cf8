"""The gates of a cold start: which retrieved steps count as followed."""

from __future__ import annotations

import dataclasses
import json
from contextlib import closing
from types import SimpleNamespace

import jax
import pytest

from rapo_jax.run.keys import StageKey, stage_key
from rapo_jax.run.policy import load_policy
from rapo_jax.run.run import open_run
from rapo_jax.sampling.tapes import segments, text_without_retrieved
from rapo_jax.stages.gates import (
    check_cold_start,
    follow_rate,
    followed_share,
    followed_steps,
    one_hop_accuracy,
)
from rapo_jax.tasks import TASKS, answer_of
from rapo_jax.tasks.stream import load_questions
from rapo_jax.text.protocol import Segment
from rapo_jax.types import Source


def last_word(text):
    return text.split()[-1]


TASK = TASKS["chains"]._replace(
    retrieved_decision=last_word,
    can_follow=lambda decision, history: decision != "stop",
    decision=last_word,
)


def row(*parts):
    return [Segment(source, step, text) for step, (source, text) in enumerate(parts)]


def test_a_step_is_followed_where_the_policy_decides_next_as_the_retrieved_step_did():
    written = row(
        (Source.POLICY, "look up "),
        (Source.TOOL, "mother "),
        (Source.RETRIEVED, "take father "),
        (Source.POLICY, "so father "),  # follows
        (Source.RETRIEVED, "take age "),
        (Source.POLICY, "rather rival "),  # does not
        (Source.RETRIEVED, "now stop "),
        (Source.POLICY, "now stop "),  # could not be taken: does not count
        (Source.RETRIEVED, "take age "),  # nothing follows
    )
    assert followed_steps(TASK, written) == [True, False]


def test_the_share_is_of_all_retrieved_steps_that_count_and_not_a_mean_over_rows():
    follows = [(Source.RETRIEVED, "take age "), (Source.POLICY, "so age ")]
    does_not = [(Source.RETRIEVED, "take age "), (Source.POLICY, "so rival ")]
    counts_not = [(Source.RETRIEVED, "now stop "), (Source.POLICY, "now stop ")]
    rows = [row(*follows), row(*follows, *does_not, *does_not), row(*counts_not)]
    assert followed_share(TASK, rows) == 2 / 4
    assert followed_share(TASK, [row(*counts_not)]) == 0


def test_the_one_hop_gate_asks_the_same_questions_however_many_a_call_takes_at_a_time(branch):
    run = branch()
    params = load_policy(run, run.cold_start)
    easy = [q for q in load_questions(run.questions["eval"]) if q.kind == "one_hop"]
    said = answers_of(run, params, easy)
    # a policy that knows nothing is right wherever its format is good
    asked = [
        dataclasses.replace(q, answers=(answer or "none",))
        for q, answer in zip(easy, said, strict=True)
    ]
    found = []
    for rows in (8, 256):
        run = branch({"evaluate.rows": rows}, name=f"rows-{rows}")
        run = dataclasses.replace(run, questions={"eval": asked})
        found.append(one_hop_accuracy(run, params))
    assert 0 < found[0] == found[1] < 1


def answers_of(run, params, questions):
    """What the policy answers in the draws of the gate; None where its format is bad."""
    tape = run.sampler.sample(
        run.sampler.load(params),
        stage_key(run.settings, StageKey.GATE_ONE_HOP),
        questions,
        temperature=1.0,
    )
    rows = (segments(run.tokens, tape, b) for b in range(len(questions)))
    return [answer_of(text_without_retrieved(row)) for row in rows]


def test_the_follow_gate_of_few_questions_is_that_of_one_device_on_several(branch):
    run = branch({"rollout.questions": 6})
    found = []
    for devices in (1, 2):
        opened = open_run(run.settings, run.workdir, devices=jax.devices()[:devices])
        questions = load_questions(opened.questions["eval"])[:5]  # 2 devices take 6: one is padding
        with closing(opened):
            five = dataclasses.replace(opened, questions={"eval": questions})
            found.append(follow_rate(five, load_policy(opened, opened.cold_start)))
    assert 0 < found[0] < 1 and found[0] == found[1]


def test_a_gate_that_is_just_reached_is_passed_and_one_that_is_missed_is_named(
    tmp_path, small_settings
):
    settings = small_settings({"sft.gate_one_hop": 0.5, "sft.gate_follow": 0.75})
    run = SimpleNamespace(cold_start=tmp_path, settings=settings)
    reached = {"one_hop": 0.5, "follow": 0.75}
    (tmp_path / "gates.json").write_text(json.dumps(reached))
    assert check_cold_start(run) == reached
    for name, gate in reached.items():
        (tmp_path / "gates.json").write_text(json.dumps(reached | {name: gate - 1e-6}))
        with pytest.raises(ValueError, match=rf"^sft\.gate_{name}={gate}: the cold start reached"):
            check_cold_start(run)

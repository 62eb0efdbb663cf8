"""Suites end to end: a scripted policy over all fourteen, kills, and the real tiny policy."""

from __future__ import annotations

import json

import numpy as np
import pytest

from rapo_jax.run.policy import load_policy, newest_folder
from rapo_jax.stages.suites import evaluate_suite, evaluate_suites, open_suites
from rapo_jax.suites.catalogue import SUITES, read_suites
from rapo_jax.suites.predictions import Sampled
from rapo_jax.tasks.stream import load_questions
from rapo_jax.train.evaluate import evaluate
from tests.tasks.published.fixtures import FIXTURES, gsm, lines


def scripted(answers):
    """A policy that answers from a mapping of question -> answer, and notes what it is asked."""
    asked = []

    def sample(questions, start):
        asked.append((start, [q.question for q in questions]))
        texts = (answers.get(q.question, "nothing") for q in questions)
        return [
            Sampled(
                rf"<think>so</think><answer>\boxed{{{text}}}</answer>", "ANSWERED", 7,
                [("search", "ok")],
            )
            for text in texts
        ]  # fmt: skip

    return sample, asked


def run_suite(settings, workdir, suite, policy, *, fits=lambda q: True, weights="made"):
    return evaluate_suite(
        settings,
        workdir,
        suite,
        weights=weights,
        policy=lambda _: policy,
        fits=fits,
        user_tools=(),
        shards=1,
    )


def rows_of(workdir, name):
    return [json.loads(line) for line in (workdir / "suites" / f"{name}.jsonl").open()]


def files_of(workdir):
    return {path.name: path.read_bytes() for path in (workdir / "suites").iterdir()}


@pytest.fixture
def eleven(tmp_path):
    """A suite of eleven questions, of which the gold answers are 1000, 1100, ..."""
    lines(tmp_path / "manual" / "gsm8k" / "test.jsonl", [gsm(n) for n in range(11)])
    (suite,) = read_suites(
        ["gsm8k"], manual_dir=str(tmp_path / "manual"), malformed="fail", metric="f1"
    )
    return suite


@pytest.mark.parametrize(
    ("name", "rule"),
    [*((name, "official") for name in SUITES), ("math500", "strict"), ("musique", "strict")],
)
def test_each_of_the_fourteen_suites_is_sampled_scored_and_summed_up(
    name, rule, small_settings, tmp_path
):
    listed = SUITES[name]
    fixture = next(f for f in FIXTURES if (f.set, f.split) == (listed.set, listed.split))
    fixture.write(tmp_path / fixture.set / fixture.file, fixture.records)
    settings = small_settings(
        {"evaluate.suites": (name,), "evaluate.manual_dir": str(tmp_path), "evaluate.rows": 2,
         "evaluate.scoring": rule, "stages": ("rl", "evaluate")}
    )  # fmt: skip
    (suite,) = open_suites(settings, tmp_path)
    policy, _ = scripted({row[0]: row[1][-1] for row in fixture.rows[:-1]})
    found = run_suite(settings, tmp_path, suite, policy)
    n = len(fixture.rows)
    assert (found["questions"], found["kinds"]["right"], found["scoring"]) == (n, n - 1, rule)
    assert found["score"] == pytest.approx((n - 1) / n)
    rows = rows_of(tmp_path, name)
    assert [row["question"] for row in rows] == [row[0] for row in fixture.rows]
    for key in ("id", "gold", "prediction", "boxed", "scores", "ending", "calls", "tokens", "text"):
        assert all(key in row for row in rows), key
    assert rows[-1]["prediction"] == "nothing" and rows[-1]["calls"] == {"search": 1}


def test_a_suite_killed_midway_ends_with_the_same_bytes_and_asks_nothing_twice(
    eleven, small_settings, tmp_path
):
    settings = small_settings({"evaluate.rows": 4})
    answers = {q.question: q.answers[0] for q in eleven.questions[::2]}
    policy, asked = scripted(answers)
    whole = run_suite(settings, tmp_path / "whole", eleven, policy)
    assert [start for start, _ in asked] == [0, 4, 8]

    def dying(questions, start):
        if start == 8:
            raise KeyboardInterrupt
        return scripted(answers)[0](questions, start)

    with pytest.raises(KeyboardInterrupt):
        run_suite(settings, tmp_path / "killed", eleven, dying)
    policy, asked = scripted(answers)
    found = run_suite(settings, tmp_path / "killed", eleven, policy)
    assert [start for start, _ in asked] == [8]
    assert files_of(tmp_path / "killed") == files_of(tmp_path / "whole")
    assert found == whole

    policy, asked = scripted({})
    assert run_suite(settings, tmp_path / "whole", eleven, policy) == whole
    assert asked == []


def test_another_scoring_is_told_from_the_same_samples(eleven, small_settings, tmp_path):
    """A box without any tag: the official script takes it, the outcome reward does not."""
    asked = []

    def policy(questions, start):
        asked.append(start)
        return [Sampled(rf"\boxed{{{q.answers[0]}}}", "STOPPED", 1, []) for q in questions]

    found = {}
    for rule in ("official", "strict"):
        settings = small_settings({"evaluate.scoring": rule})
        found[rule] = run_suite(settings, tmp_path, eleven, policy)
    assert asked == [0, 6]  # 11 questions, at most 8 rows: two batches of 6
    assert {rule: x["score"] for rule, x in found.items()} == {"official": 1.0, "strict": 0.0}
    assert found["strict"]["kinds"]["bad format"] == 11
    assert {row["score"] for row in rows_of(tmp_path, "gsm8k")} == {0.0}  # the last call's


def test_several_samples_of_a_question_are_rows_beside_each_other(eleven, small_settings, tmp_path):
    settings = small_settings({"evaluate.samples": 3, "evaluate.temperature": 0.7})
    count = iter(range(99))

    def policy(questions, start):
        """Every third sample is right: one of each question."""
        texts = [q.answers[0] if next(count) % 3 == 0 else "-1" for q in questions]
        return [Sampled(rf"\boxed{{{text}}}", "ANSWERED", 1, []) for text in texts]

    found = run_suite(settings, tmp_path, eleven.only(range(5)), policy)
    assert (found["questions"], found["samples"], found["pass@3"]) == (5, 3, 1.0)
    assert found["pass@1"] == pytest.approx(1 / 3) and found["avg@3"] == pytest.approx(1 / 3)
    rows = rows_of(tmp_path, "gsm8k")
    assert [row["sample"] for row in rows] == [0, 1, 2] * 5


def test_a_question_that_does_not_fit_is_counted_and_not_asked(eleven, small_settings, tmp_path):
    policy, asked = scripted({q.question: q.answers[0] for q in eleven.questions})
    long = eleven.questions[3]
    found = run_suite(small_settings(), tmp_path, eleven, policy, fits=lambda q: q != long)
    assert long.question not in {text for _, texts in asked for text in texts}
    assert (found["questions"], found["kinds"]["prompt too long"]) == (11, 1)
    assert [row["id"] for row in rows_of(tmp_path, "gsm8k")] == [q.id for q in eleven.questions]
    again = run_suite(small_settings(), tmp_path, eleven, policy, fits=lambda q: q != long)
    assert again == found


def test_predictions_of_older_weights_are_not_taken_for_those_of_newer_ones(
    eleven, small_settings, tmp_path
):
    policy, _ = scripted({})
    run_suite(small_settings(), tmp_path, eleven, policy, weights="checkpoint of step 2")
    with pytest.raises(ValueError, match="another weights .*move gsm8k"):
        run_suite(small_settings(), tmp_path, eleven, policy, weights="checkpoint of step 4")


def test_suites_alone_need_weights_before_anything_is_opened(small_settings, tmp_path):
    lines(tmp_path / "gsm8k" / "test.jsonl", [gsm(1)])
    changes = {"evaluate.suites": ("gsm8k",), "evaluate.manual_dir": str(tmp_path)}
    settings = small_settings(changes | {"stages": ("evaluate",)})
    assert settings.suites_alone
    with pytest.raises(ValueError, match=r"model\.folder='': there are no weights, and no check"):
        open_suites(settings, tmp_path)
    assert len(open_suites(small_settings(changes), tmp_path)) == 1  # it will be trained first
    assert open_suites(small_settings(changes | {"stages": ("rl",)}), tmp_path) == []
    limited = small_settings(changes | {"evaluate.limit": 1})
    assert len(open_suites(limited, tmp_path)[0].questions) == 1


def test_questions_with_several_answers_are_named_where_the_last_one_alone_counts(
    small_settings, tmp_path, capsys
):
    path = tmp_path / "mine.jsonl"
    lines(path, [{"question": "a?", "answers": ["x", "y"]}, {"question": "b?", "answer": "x"}])
    for scoring, noted in (("official", True), ("strict", False)):
        changes = {"evaluate.suites": (str(path),), "evaluate.scoring": scoring}
        open_suites(small_settings(changes), tmp_path)
        said = "[data] mine: 1 of 2 questions have several answers, and evaluate.scoring='official'"
        assert (said in capsys.readouterr().out) == noted


def test_a_judge_without_its_key_is_refused_before_anything_is_sampled(small_settings, tmp_path):
    lines(tmp_path / "gsm8k" / "test.jsonl", [gsm(1)])
    changes = {
        "evaluate.suites": ("gsm8k",), "evaluate.manual_dir": str(tmp_path),
        "evaluate.judge.url": "http://127.0.0.1:1", "evaluate.judge.model": "m",
        "evaluate.judge.key_variable": "NO_SUCH_KEY_IS_SET",
    }  # fmt: skip
    with pytest.raises(ValueError, match="NO_SUCH_KEY_IS_SET.: this environment variable is empty"):
        open_suites(small_settings(changes), tmp_path)


def test_the_real_policy_is_scored_on_a_suite_as_it_is_on_held_out_questions(
    branch, trunk, tmp_path
):
    questions = load_questions(trunk.questions["eval"])[:11]  # rows: 8
    records = [{"id": q.id, "question": q.question, "answers": list(q.answers)} for q in questions]
    lines(tmp_path / "made.jsonl", records)
    changes = {"evaluate.suites": (str(tmp_path / "made.jsonl"),), "evaluate.scoring": "strict"}
    run = branch(changes)
    suites = open_suites(run.settings, run.workdir)
    result = {"suites": {"other": {"weights": "older ones"}}}
    evaluate_suites(run, suites, result)
    found = result["suites"]["made"]
    assert list(result["suites"]) == ["made"]  # of these weights alone
    wanted = evaluate(run, load_policy(trunk, trunk.cold_start), questions)
    assert found["pass@1"] == pytest.approx(wanted["accuracy"])
    assert found["tokens"] == pytest.approx(wanted["tokens"])
    assert (
        found["weights"] == "cold start of step 80" == newest_folder(run.settings, run.workdir)[1]
    )
    rows = rows_of(run.workdir, "made")
    assert sum(sum(row["calls"].values()) for row in rows) > 0
    for row in rows:
        called = sum(row["text"].count(f"</{tool}>") for tool in ("search", "python"))
        assert sum(row["calls"].values()) in (called, called - 1)  # one beyond the limit is not run
        assert "<retrieve>" not in row["text"]
    endings = {name: sum(row["ending"] == name for row in rows) for name in wanted["endings"]}
    assert endings == wanted["endings"]
    table = (run.workdir / "suites" / "table.md").read_text()
    assert "| made | 11 | f1 | " in table
    assert np.isfinite(found["score"])
    assert not any(run.environment.take_counts().values())

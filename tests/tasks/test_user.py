"""A task and a reward that a user wrote."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from rapo_jax.tasks import SPLITS, Question, find_reward, find_task, outcome_reward, question_task
from rapo_jax.tasks.stream import load_questions, prepare_questions

TASK = find_task("tests.user_code:NEIGHBOURS")


def test_questions_of_a_function_become_those_of_a_task():
    world = TASK.make_world(held_out=1)
    train, held_out, expert = (TASK.questions(world, split) for split in SPLITS)
    assert [q.question for q in train] == [
        f"Who is next to {word}?" for word in ("Bob", "Carla", "Dora", "Emil", "Fred")
    ]
    assert train[0] == Question("train-0", "Who is next to Bob?", ("Bob",), "user", "neighbours")
    assert [q.id for q in held_out] == ["eval-0", "q"]
    assert held_out[1].answers == ("Bob", "nobody")
    assert expert == train
    assert TASK.documents(world)[0] == "Anna is next to Anna"
    assert not TASK.scripted and find_task("chains").scripted
    assert TASK.sources(world)[0]["summary"] == "neighbours: 5 questions, 2 held out"


def test_prepared_questions_are_those_of_the_function_as_it_is_now(tmp_path):
    made = {"train": [("a", "b")], "eval": [("c", ("d", "e"))]}
    task = question_task(lambda: made)

    def content():
        world = task.make_world()
        path = "tests.user_code:NO_DOCUMENTS"
        found = find_task(path)
        assert found.questions(world, "train") == task.questions(world, "train")
        files = prepare_questions(path, {}, world, data_dir=str(tmp_path))
        return [(q.question, q.answers) for q in load_questions(files["eval"])]

    assert content() == [("c", ("d", "e"))]
    made["eval"] = [("f", "g")]  # the code was edited between two runs
    assert content() == [("f", ("g",))]
    folders = [path.name for path in tmp_path.glob("task_questions/*")]
    assert len({name for name in folders if name.startswith("tests_user_code_NO_DOCUMENTS-")}) == 2


def named(name, answers):
    return Question(name, "Who?", answers, "kind", "source")


@pytest.mark.parametrize("answers", ["Bob", ["Bob", "nobody"], ("Bob",)])
def test_the_answers_of_a_question_with_an_id_are_a_tuple_of_texts(answers):
    task = question_task(lambda: {"train": [named("x", answers)], "eval": [named("x", "y")]})
    (question,) = task.questions(task.make_world(), "train")
    assert question.answers == (("Bob",) if answers == "Bob" else tuple(answers))


def test_a_whole_task_whose_questions_share_an_id_is_refused(tmp_path):
    path = "tests.user_code:REPEATS"
    with pytest.raises(ValueError, match="REPEATS': 'train': questions 0 and 1 have the same id"):
        prepare_questions(path, {}, find_task(path).make_world(), data_dir=str(tmp_path))


@pytest.mark.parametrize(
    ("made", "message"),
    [
        ([], "task.name: make must return {'train': [...], 'eval': [...]}, and perhaps 'doc"),
        ({"train": []}, "not ['train']"),
        ({"train": [], "eval": [], "docs": []}, "not ['docs', 'eval', 'train']"),
        ({"train": ["a"], "eval": []}, "question 0 of 'train' is no (text, answer) or (text, [ans"),
        ({"train": [], "eval": [("a", "b"), ("a", "b", "c")]}, "question 1 of 'eval' is no (text"),
        ({"train": [("a", [])], "eval": []}, "question 0 of 'train' is no"),
        ({"train": [("a", 3)], "eval": []}, "question 0 of 'train' is no"),
        ({"train": [(" ", "b")], "eval": []}, "question 0 of 'train' is no"),
        ({"train": [("a", ["b", None])], "eval": []}, "question 0 of 'train' is no"),
        ({"train": [named("a", ())], "eval": []}, "question 0 of 'train' is no"),
        ({"train": [named("a", ("b", " "))], "eval": []}, "question 0 of 'train' is no"),
        ({"train": [named("a", 3)], "eval": []}, "question 0 of 'train' is no"),
        ({"train": [named(" ", "b")], "eval": []}, "'train': question 0 has the id ' '; name it"),
        ({"train": [named(7, "b")], "eval": []}, "'train': question 0 has the id 7; name it"),
        (
            {"train": [("a", "b")], "eval": [named("x", "b"), ("c", "d"), named("x", "e")]},
            "task.name: make: 'eval': questions 0 and 2 have the same id, 'x'; an id names one",
        ),
        (
            {"train": [("a", "b"), named("train-0", "b")], "eval": []},
            "'train': questions 0 and 1 have the same id, 'train-0'",
        ),
        ({"train": [], "eval": [], "documents": ["", "a"]}, "make: document 0 is no text but ''"),
    ],
)
def test_a_malformed_question_is_refused_with_its_place(made, message):
    def make():
        return made

    with pytest.raises(ValueError, match=re.escape(message)):
        question_task(make).make_world()


def test_an_argument_that_the_function_does_not_take_is_refused():
    message = (
        "task.user_arguments={'held': 1}: neighbours(*, held_out=2): got an unexpected keyword"
    )
    with pytest.raises(ValueError, match=re.escape(message)):
        TASK.make_world(held=1)


def test_training_questions_that_are_held_out_too_give_a_warning():
    task = question_task(lambda: {"train": [("a", "b"), ("c", "d")], "eval": [("a", "b")]})
    summaries = [source.get("summary", "") for source in task.sources(task.make_world())]
    assert any(line.startswith("warning: 1 of the held-out questions are") for line in summaries)


def test_a_path_to_something_else_than_a_task_is_refused():
    with pytest.raises(ValueError, match="user_code:neighbours': it is a function and no Task; ma"):
        find_task("tests.user_code:neighbours")


GOOD = "<think>t</think><answer>\\boxed{Bob}</answer>"


def test_without_a_path_the_reward_is_the_papers():
    reward = find_reward("", metric="f1", user_tools=())
    assert reward(GOOD, ("Bob",)) == outcome_reward(GOOD, ("Bob",)) == 1.0


def test_a_users_reward_replaces_it():
    reward = find_reward("tests.user_code:quarter", metric="f1", user_tools=())
    assert reward(GOOD, ("Bob",)) == 0.25


def test_a_users_reward_gets_a_tuple_of_golds_also_where_they_come_from_json():
    reward = find_reward("tests.user_code:of_tuples", metric="f1", user_tools=())
    assert reward("no tags", ["Bob"]) == reward("no tags", ("Bob",)) == -1


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("not_finite", "it gave nan and no number of at most 1e+18 in size for 'text'"),
        ("too_large", "it gave 1e+19 and no number of at most 1e+18 in size for 'text'"),
        ("too_long", f"it gave {10**400} and no number of at most 1e+18 in size for 'text'"),
        ("far_too_long", "it gave a value of type int and no number of at most 1e+18 in size"),
        ("no_number", "it gave '0.5' and no number of at most 1e+18 in size for 'text'"),
        ("raises", "it raised ValueError for 'text'"),
        ("leaves", "it raised SystemExit for 'text'"),
    ],
)
def test_a_reward_that_is_no_finite_number_ends_the_run_with_its_key(name, reason):
    reward = find_reward(f"tests.user_code:{name}", metric="f1", user_tools=())
    message = re.escape(f"task.reward='tests.user_code:{name}': {reason}")
    with pytest.raises(RuntimeError, match=message):
        reward("text", ("Bob",))


def test_a_reward_that_cannot_be_called_is_refused_before_it_is_needed():
    with pytest.raises(ValueError, match=r"a function of \(text, gold_answers\), and takes"):
        find_reward("tests.user_code:shout", metric="f1", user_tools=())


def test_an_error_of_a_user_s_own_task_is_no_refused_value(tmp_path):
    """A ValueError alone would be one line without a file: 'Expecting value: line 1 column 1'."""

    def questions(path):
        return json.loads(Path(path).read_text())

    (tmp_path / "bad").write_text("not json")
    task = question_task(questions)
    for name, cause in (("bad", "Expecting value"), ("missing", "No such file")):
        with pytest.raises(RuntimeError, match="^task.name: questions fails$") as raised:
            task.make_world(path=str(tmp_path / name))
        assert cause in str(raised.value.__cause__)

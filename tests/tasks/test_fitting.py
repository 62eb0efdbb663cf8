"""Questions that are longer than a prompt may be."""

from __future__ import annotations

import pytest

from rapo_jax.tasks import Question
from rapo_jax.tasks.fitting import fitting_questions


def by_text(question):
    return len(question.question)


def long_ones(*lengths):
    return [Question(str(n), "x" * n, ("y",), "kind", "source") for n in lengths]


def test_questions_that_are_too_long_are_counted_and_left_out(capsys):
    questions = long_ones(3, 9, 4, 12)
    splits = {"train": questions, "eval": long_ones(1, 2), "expert": questions}
    found = fitting_questions(splits, by_text, limit=4, skip=True)
    assert (
        list(found["train"]) == [questions[0], questions[2]] == [found["train"][i] for i in (0, 1)]
    )
    assert len(found["train"]) == 2
    assert found["expert"] is found["train"] and found["eval"] is splits["eval"]
    assert capsys.readouterr().out.splitlines() == [
        "[data] rollout.prompt_tokens=4: 2 of the 4 questions of 'train' have a longer prompt, "
        "'12' of 12 tokens; they are left out"
    ]


@pytest.mark.parametrize(
    ("lengths", "skip", "remedy"),
    [((5, 6), True, "raise it$"), ((3, 5), False, "set task.too_long")],
)
def test_a_split_without_fitting_questions_is_refused_and_any_by_key(lengths, skip, remedy):
    with pytest.raises(ValueError, match=rf"prompt_tokens=4: .* of 'eval' .*{remedy}"):
        fitting_questions({"eval": long_ones(*lengths)}, by_text, limit=4, skip=skip)

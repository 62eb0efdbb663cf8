"""The gates of a cold start: which retrieved steps count as followed."""

from __future__ import annotations

from rapo_jax.stages.gates import followed_share, followed_steps
from rapo_jax.tasks import TASKS
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

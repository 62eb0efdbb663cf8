"""The outcome reward of a whole response text (paper, section 5.1; docs/method.md).

Malformed responses score -1; no response text makes it raise. `metric` must be a key of METRICS
(else KeyError); 'math' raises RuntimeError if no worker process starts. `<retrieve>` spans are cut
out first, so that only the policy's steps count. A tag that a thought only names is text. Calls of
`user_tools` must be well formed too, and earn no bonus. `answers` is the rule of a protocol: with
another one than ours, any response with an answer is well formed, and one without has the reward 0.
"""

from __future__ import annotations

import functools
import re
from collections import Counter
from collections.abc import Callable, Sequence

from rapo_jax.scoring.answers import last_boxed, token_f1
from rapo_jax.scoring.maths import check_math_verify, math_equal
from rapo_jax.text.protocol import CALLS, REST_OF_TOKEN, STEP_KINDS, without_retrieved
from rapo_jax.text.protocols import AnswerRule

BAD_FORMAT = -1.0
BONUS = 0.1
"""For a right answer of a response that calls both search and python."""

_OBSERVED_MARK = "<result></result>"

CACHED_RESPONSES = 1024
"""Reward, accuracy and format of a response are asked for in turn, and read the same text."""


@functools.cache
def _observed(user_tools: tuple[str, ...]) -> re.Pattern[str]:
    called = "|".join((*CALLS, *user_tools))
    result = "<result>(?:(?!<result>).)*?</result>"
    return re.compile(rf"(</(?:{called})>){REST_OF_TOKEN}{result}", re.DOTALL)


@functools.cache
def _tags(user_tools: tuple[str, ...]) -> re.Pattern[str]:
    return re.compile(rf"</?(?:{'|'.join(('think', *STEP_KINDS, *user_tools))})>")


_THOUGHT = re.compile(r"<think>((?:(?!</?think>).)*)</think>", re.DOTALL)


@functools.cache
def _calls_and_tags(user_tools: tuple[str, ...]) -> re.Pattern[str]:
    """A whole call with its result, or one tag."""
    called = "|".join((*CALLS, *user_tools))
    call = rf"<({called})>(?:(?!<\1>).)*?</\1>{_OBSERVED_MARK}"
    return re.compile(rf"{call}|{_tags(user_tools).pattern}", re.DOTALL)


def outcome_reward(
    text: str,
    gold_answers: Sequence[str],
    *,
    metric: str = "f1",
    user_tools: tuple[str, ...] = (),
    answers: AnswerRule = "tagged",
) -> float:
    """Outcome reward R of a response: -1 for a bad format, else the answer's score (+ 0.1).

    The score is that of `METRICS[metric]`, in [0, 1], for the best of `gold_answers`. The bonus
    needs a score > 0, and at least one non-empty search call and one non-empty python call of the
    policy.

    Raises:
        TypeError: `gold_answers` is one text, whose letters would be the answers.
    """
    if isinstance(gold_answers, str):
        raise TypeError(
            f"gold_answers={gold_answers!r}: a sequence of answers, such as [{gold_answers!r}]"
        )
    if answers != "tagged":
        answer = answer_of(text, user_tools, answers)
        return 0.0 if answer is None else METRICS[metric](answer, gold_answers)
    response = _judged_text(text, user_tools)
    if _format_failure(response, user_tools):
        return BAD_FORMAT
    score = METRICS[metric](last_boxed(_answer(response)) or "", gold_answers)
    both = all(re.search(rf"<{tool}>(?!\s*</{tool}>)", response) for tool in CALLS)
    return score + BONUS if score > 0 and both else score


def is_correct(
    text: str,
    gold_answers: Sequence[str],
    *,
    metric: str = "f1",
    user_tools: tuple[str, ...] = (),
    answers: AnswerRule = "tagged",
) -> bool:
    """Whether a response is well formed and its answer's score is 1; accuracy is its mean."""
    answer = answer_of(text, user_tools, answers)
    return answer is not None and METRICS[metric](answer, gold_answers) == 1.0


def answer_of(
    text: str, user_tools: tuple[str, ...] = (), answers: AnswerRule = "tagged"
) -> str | None:
    """The answer of a response, None if its format is bad."""
    if answers == "boxed":
        return last_boxed(text)
    if answers != "tagged":
        return answers(text)
    response = _judged_text(text, user_tools)
    return None if _format_failure(response, user_tools) else last_boxed(_answer(response))


def check_metric(metric: str) -> None:
    """Raises ValueError if a package of the metric is missing; to be called before a long job."""
    if metric == "math":
        check_math_verify()


def failure_kind(
    text: str, user_tools: tuple[str, ...] = (), answers: AnswerRule = "tagged"
) -> str:
    """Why the format of a response is bad, in a few words; '' if it is good."""
    if answers != "tagged":
        return "no answer" if answer_of(text, user_tools, answers) is None else ""
    return _format_failure(_judged_text(text, user_tools), user_tools)


def _best_f1(prediction: str, gold_answers: Sequence[str]) -> float:
    return max((token_f1(prediction, gold) for gold in gold_answers), default=0.0)


def _any_equal(prediction: str, gold_answers: Sequence[str]) -> float:
    return float(any(math_equal(prediction, gold) for gold in gold_answers))


METRICS: dict[str, Callable[[str, Sequence[str]], float]] = {"f1": _best_f1, "math": _any_equal}
"""Scores of a boxed answer, chosen by task.metric: token F1, or 1 for an equivalent answer."""


@functools.lru_cache(maxsize=CACHED_RESPONSES)
def _judged_text(text: str, user_tools: tuple[str, ...]) -> str:
    """The response without retrieved traces and with the content of observations left out.

    Where its format is bad, tags inside its thoughts are left out too, unless they make a call that
    has its result.
    """
    response = _observed(user_tools).sub(rf"\1{_OBSERVED_MARK}", without_retrieved(text))
    if not _format_failure(response, user_tools):
        return response
    pattern = _calls_and_tags(user_tools)

    def without_names(thought: re.Match[str]) -> str:
        inside = pattern.sub(lambda found: found[0] if found[1] else "", thought[1])
        return f"<think>{inside}</think>"

    return _THOUGHT.sub(without_names, response)


@functools.lru_cache(maxsize=CACHED_RESPONSES)
def _format_failure(response: str, user_tools: tuple[str, ...]) -> str:
    opened: dict[str, int] = {}
    pairs: Counter[str] = Counter()
    for tag in _tags(user_tools).finditer(response):
        name = tag[0].strip("</>")
        if not tag[0].startswith("</"):
            if name in opened:
                return f"unbalanced {name} tags"
            opened[name] = tag.end()
            continue
        if opened.pop(name, None) is None:
            return f"unbalanced {name} tags"
        pairs[name] += 1
        called = name in CALLS or name in user_tools
        if called and not response.startswith(_OBSERVED_MARK, tag.end()):
            return f"{name} call without its result"
    if opened:
        return f"unbalanced {min(opened)} tags"
    if not pairs["think"]:
        return "no think tags"
    if pairs["answer"] != 1:
        return "more than one answer" if pairs["answer"] else "no answer"
    return "" if last_boxed(_answer(response)) is not None else "no boxed answer"


def _answer(response: str) -> str:
    return response.partition("<answer>")[2].partition("</answer>")[0]

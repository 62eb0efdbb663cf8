"""Scores of one answer against its gold answers: exact match, token F1, gold inside the answer.

There are two rules. `strict` is the rule of the outcome reward. `official` computes the scores of
the public evaluation of Tool-Star (evaluation/evaluate/scripts/evaluate.py), from which those of
ARPO and RAPO are derived, so that numbers are comparable with the papers'. It is less careful:

- of several gold answers the *last* counts: the script keeps the result of its loop's last pass;
- an answer that is only articles or punctuation becomes empty, two empty answers match, and an
  empty gold answer is inside every answer;
- 'yes' and 'no' may have a partial F1;
- a gold answer is inside an answer as a string of letters: '10' is inside '2010'.
"""

from __future__ import annotations

import functools
import re
import string
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

RULES = ("strict", "official")
CACHED_ANSWERS = 4096
"""The gold answers of a question are compared with those of each of its rollouts."""

_BRACES = re.compile(r"\\(?:boxed|fbox)\s*\{|\\\\(?!boxed|fbox)|\\[{}]|\{|\}")
_OFFICIAL_BRACES = re.compile(r"\\boxed\{|\{|\}")
_UNBRACED = re.compile(
    r"\\(?:boxed|fbox)(?![A-Za-z])\s*(?!\{)((?:[^\s$<{}]|\{(?:[^{}]|\{[^{}]*\})*\})+)"
)
_STYLED = re.compile(r"\\(?:text|textbf|textit|textrm|mathrm|mathbf|mbox)\s*\{([^{}]*)\}")
_TEXT = re.compile(r"\\text\{(.*)\}")
_ARTICLES = re.compile(r"\b(?:a|an|the)\b")
_NO_PUNCTUATION = str.maketrans("", "", string.punctuation)
_LEADING_POINT = re.compile(r"(?<![\w.])\.(?=\d)")
_NOT_OF_A_NUMBER = re.compile(
    rf"((?<=\d)[./](?=\d)|(?<![\w)\].-])-(?=[$€£¥]?[\d,.]*[1-9]))|[{re.escape(string.punctuation)}]"
)
_WHOLE_FLOAT = re.compile(r"(?<![\d./])(\d+)\.0+(?![\d./])")


class AnswerScores(NamedTuple):
    """Each in [0, 1]; papers call `contains` accuracy or cover match."""

    exact: float
    f1: float
    contains: float


def score_answer(prediction: str, gold_answers: Sequence[str], *, rule: str) -> AnswerScores:
    """Scores under a rule of `RULES`; all are 0 without gold answers."""
    if rule not in RULES:
        raise ValueError(f"rule={rule!r}: choose one of {', '.join(RULES)}")
    if not gold_answers:
        return AnswerScores(0.0, 0.0, 0.0)
    if rule == "official":
        return _official(prediction, gold_answers[-1])
    each = [_strict(prediction, gold) for gold in gold_answers]
    return AnswerScores(*map(max, zip(*each, strict=True)))


def token_f1(prediction: str, gold: str) -> float:
    """Token F1 of two answers after normalisation, in [0, 1]; yes and no must match exactly."""
    predicted, wanted = normalised(prediction), normalised(gold)
    if predicted == wanted:
        return 1.0 if wanted else 0.0
    if {"yes", "no"} & {predicted, wanted}:
        return 0.0
    return _overlap(predicted, wanted)


@functools.lru_cache(maxsize=CACHED_ANSWERS)
def normalised(answer: str) -> str:
    """Lower case, no punctuation, no articles, no LaTeX commands around words, single spaces.

    Sign, inner point and slash of a number stay, and a whole float is an integer: '-5', '1.5',
    '1/2', '18' for '18.0'. An answer that is only articles or punctuation (the choice 'A', the sign
    '+') keeps them: otherwise no prediction could match it.
    """
    words = _STYLED.sub(r"\1", answer).replace("~", " ")
    lowered = _LEADING_POINT.sub("0.", words.lower().replace("\N{MINUS SIGN}", "-"))
    text = _WHOLE_FLOAT.sub(r"\1", _NOT_OF_A_NUMBER.sub(r"\1", lowered))
    without_articles = _ARTICLES.sub(" ", text)
    return " ".join((without_articles.split() or text.split()) or answer.lower().split())


def _official_normalised(answer: str) -> str:
    without_punctuation = answer.lower().translate(_NO_PUNCTUATION)
    return " ".join(_ARTICLES.sub(" ", without_punctuation).split())


def _strict(prediction: str, gold: str) -> AnswerScores:
    predicted, wanted = normalised(prediction), normalised(gold)
    return AnswerScores(
        exact=float(bool(wanted) and predicted == wanted),
        f1=token_f1(prediction, gold),
        contains=float(bool(wanted) and f" {wanted} " in f" {predicted} "),
    )


def _official(prediction: str, gold: str) -> AnswerScores:
    predicted, wanted = _official_normalised(prediction), _official_normalised(gold)
    return AnswerScores(
        exact=float(predicted == wanted),
        f1=_overlap(predicted, wanted),
        contains=float(wanted in predicted),
    )


def _overlap(predicted: str, wanted: str) -> float:
    predicted_tokens, wanted_tokens = predicted.split(), wanted.split()
    common = sum((Counter(predicted_tokens) & Counter(wanted_tokens)).values())
    total = len(predicted_tokens) + len(wanted_tokens)
    return 2.0 * common / total if total else 0.0


def last_boxed(text: str) -> str | None:
    r"""Content of the last box whose braces balance, None if there is none.

    A box is `\boxed{...}` or `\fbox{...}`, and where there is no such one `\boxed 5`. The escaped
    braces of a set, `\{` and `\}`, need not balance.
    """
    braced = _last_braced(text, _BRACES)
    if braced is not None:
        return braced
    unbraced = [found.rstrip(".,;:") for found in _UNBRACED.findall(text)]
    return next(filter(None, reversed(unbraced)), None)


def _last_braced(text: str, braces: re.Pattern[str]) -> str | None:
    open_braces: list[tuple[bool, int]] = []
    best_start, best = -1, None
    for brace in braces.finditer(text):
        if brace[0].startswith("\\") and not brace[0].startswith(("\\boxed", "\\fbox")):
            continue
        if brace[0] != "}":
            open_braces.append((len(brace[0]) > 1, brace.end()))
        elif open_braces:
            is_box, start = open_braces.pop()
            if is_box and start > best_start:
                best_start, best = start, text[start : brace.start()]
    return best


def official_answer(response: str) -> str:
    r"""The answer that the official script takes from a response, whatever its format.

    The last box, and of it the last `\text{...}`; without a box the text after 'ANSWER:'; without
    that the last ten lines. `response` is without retrieved traces.
    """
    answer = _last_braced(response, _OFFICIAL_BRACES)
    if answer is None:
        _, marked, answer = response.rpartition("ANSWER:")
        answer = answer.strip("* \n\t") if marked else "\n".join(response.strip().split("\n")[-10:])
    if "\\text" in answer:
        texts = _TEXT.findall(answer)
        answer = (texts[-1] if texts else answer).strip("()")
    return answer.strip()

"""The outcome reward of a whole response text (paper, section 5.1; method.md 2).

Total on any text: malformed responses score -1, nothing raises. `<retrieve>` spans are cut out
before anything is judged, so that only what the policy itself did counts.
"""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Sequence

BAD_FORMAT = -1.0
BONUS = 0.1
"""For a right answer whose policy used both search and python."""

_RETRIEVED = re.compile(r"<retrieve>(?:(?!<retrieve>).)*?</retrieve>", re.DOTALL)
_OBSERVED = re.compile(r"(</(?:search|python)>)\s*<result>(?:(?!<result>).)*?</result>", re.DOTALL)
_TAG = re.compile(r"</?(?:think|search|python|answer)>")
_BRACES = re.compile(r"\\boxed\{|\{|\}")
_ARTICLES = re.compile(r"\b(?:a|an|the)\b")
_NO_PUNCTUATION = str.maketrans("", "", string.punctuation)
_OBSERVED_MARK = "<result></result>"


def outcome_reward(text: str, gold_answers: Sequence[str]) -> float:
    """Outcome reward R of a response: -1 for a bad format, else token F1 (+ 0.1), in [-1, 1.1].

    The best of `gold_answers` counts. The bonus needs F1 > 0 and at least one non-empty search
    call and one non-empty python call of the policy itself.
    """
    own = _own_text(text)
    if _format_failure(own):
        return BAD_FORMAT
    f1 = _best_f1(_boxed(_answer(own)) or "", gold_answers)
    both = all(re.search(rf"<{tool}>(?!\s*</{tool}>)", own) for tool in ("search", "python"))
    return f1 + BONUS if f1 > 0 and both else f1


def is_correct(text: str, gold_answers: Sequence[str]) -> bool:
    """Whether a response is well formed and its boxed answer has F1 = 1: what accuracy counts."""
    own = _own_text(text)
    return not _format_failure(own) and _best_f1(_boxed(_answer(own)) or "", gold_answers) == 1.0


def failure_kind(text: str) -> str:
    """Why the format of a response is bad, in a few words; '' if it is fine."""
    return _format_failure(_own_text(text))


def token_f1(prediction: str, gold: str) -> float:
    """Token F1 of two answers after normalisation, in [0, 1]; yes and no must match exactly."""
    predicted, wanted = _normalised(prediction), _normalised(gold)
    if predicted == wanted:
        return 1.0 if wanted else 0.0
    if {"yes", "no"} & {predicted, wanted}:
        return 0.0
    predicted_tokens, wanted_tokens = predicted.split(), wanted.split()
    common = sum((Counter(predicted_tokens) & Counter(wanted_tokens)).values())
    total = len(predicted_tokens) + len(wanted_tokens)
    return 2.0 * common / total if total else 0.0


def _best_f1(prediction: str, gold_answers: Sequence[str]) -> float:
    return max((token_f1(prediction, gold) for gold in gold_answers), default=0.0)


def _normalised(answer: str) -> str:
    """Lower case, no punctuation, no articles, single spaces.

    An answer that is nothing but articles or punctuation (the choice 'A', the sign '+') keeps
    them: otherwise it could never be answered.
    """
    lowered = answer.lower()
    without_punctuation = " ".join(lowered.translate(_NO_PUNCTUATION).split())
    without_articles = " ".join(_ARTICLES.sub(" ", without_punctuation).split())
    return without_articles or without_punctuation or " ".join(lowered.split())


def _own_text(text: str) -> str:
    """The response without retrieved traces and with the content of observations left out."""
    return _OBSERVED.sub(rf"\1{_OBSERVED_MARK}", _RETRIEVED.sub("", text))


def _format_failure(own: str) -> str:
    opened: dict[str, int] = {}
    pairs: Counter[str] = Counter()
    for found in _TAG.finditer(own):
        name = found[0].strip("</>")
        if not found[0].startswith("</"):
            if name in opened:
                return f"unbalanced {name} tags"
            opened[name] = found.end()
            continue
        if opened.pop(name, None) is None:
            return f"unbalanced {name} tags"
        pairs[name] += 1
        if name in ("search", "python") and not own.startswith(_OBSERVED_MARK, found.end()):
            return f"{name} call without its result"
    if opened:
        return f"unbalanced {min(opened)} tags"
    if not pairs["think"]:
        return "no think tags"
    if pairs["answer"] != 1:
        return "more than one answer" if pairs["answer"] else "no answer"
    return "" if _boxed(_answer(own)) is not None else "no boxed answer"


def _answer(own: str) -> str:
    return own.partition("<answer>")[2].partition("</answer>")[0]


def _boxed(answer: str) -> str | None:
    r"""Content of the last `\boxed{...}` whose braces balance, None if there is none."""
    open_braces: list[tuple[bool, int]] = []
    best_start, best = -1, None
    for found in _BRACES.finditer(answer):
        if found[0] != "}":
            open_braces.append((len(found[0]) > 1, found.end()))
        elif open_braces:
            is_box, start = open_braces.pop()
            if is_box and start > best_start:
                best_start, best = start, answer[start : found.start()]
    return best

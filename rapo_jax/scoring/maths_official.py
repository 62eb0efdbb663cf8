"""Equality of maths answers as strings, by the rules of the MATH benchmark."""

from __future__ import annotations

import re

_RULES = tuple(
    (re.compile(pattern), replacement)
    for pattern, replacement in (
        (r"^\s+|\s+$|\n|\\!", ""),
        (r"\\\\", r"\\"),
        (r"[td]frac", "frac"),
        (r"\\left|\\right", ""),
        (r"\^\{\\circ\}|\^\\circ", ""),
        (r"\\\$", ""),
        (r"\\text\{ .*", ""),  # only units start with a space
        (r"\\%", ""),
        (r"(^|[ {])\.", r"\g<1>0."),
        (r"^[^=]{0,2}=([^=]*)$", r"\1"),  # x = 5
        (r"\\sqrt([^{])", r"\\sqrt{\1}"),
        (r" ", ""),
        (r"\\frac([^{])([^{])", r"\\frac{\1}{\2}"),
        (r"\\frac([^{])\{", r"\\frac{\1}{"),
        (r"^0\.5$", r"\\frac{1}{2}"),
        (r"^(-?\d+)/(-?\d+)$", r"\\frac{\1}{\2}"),
    )
)


def official_math_equal(prediction: str, gold: str) -> bool:
    """Equality after the string rules of the MATH benchmark, as in Tool-Star's evaluation.

    The rules of github.com/hendrycks/math (modeling/math_equivalence.py), on lower-cased answers.
    The public script keeps the opening brace of a box's content, so that no boxed answer is ever
    equal there and its judge model decides; here the brace is removed.
    """
    return _plain(prediction.lower()) == _plain(gold.lower())


def _plain(text: str) -> str:
    for pattern, replacement in _RULES:
        text = pattern.sub(replacement, text)
    return text

"""The worker process of `maths.py`: compares answers with math-verify, one JSON line each way.

math-verify's time-outs are switched off: they raise from a signal handler, only in the main thread,
and sympy and math-verify swallow the exception. Here the kernel's alarm keeps its default action,
which ends the process: no code in it can catch that. This script is run by path, so that it imports
nothing of the package (and no jax).

An answer is parsed as a whole: math-verify's search for the last number in a text would make junk
right.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import os
import re
import resource
import signal
import sys
import unicodedata

_SYMBOLS = str.maketrans(
    {
        "−": "-", "×": r"\times ", "·": r"\cdot ", "⋅": r"\cdot ", "÷": "/", "⁄": "/",
        "°": r"^\circ ", "π": r"\pi ", "∞": r"\infty ", "≤": r"\le ", "≥": r"\ge ",
        "\u00a0": " ", "\u2007": " ", "\u2009": " ", "\u202f": " ",
    }
)  # fmt: skip
_VULGAR_FRACTION = re.compile("[¼-¾⅐-⅞]")
_RAISED = re.compile("[⁰¹²³⁴-⁹]+")
_LOWERED = re.compile("[₀-₉]+")
_GROUPS = re.compile(
    r"(?<![\d.,])[1-9]\d{0,2}(?:(?: |\\[,;:! ]|~|\{,\}|,\\!)\d{3})+(?!\d|\s*/|\\[,;:! ]\d| \d)"
)
_PYTHON_ROOT = re.compile(r"(?<![\\A-Za-z])sqrt\(([^()]*)\)")
_SPELLINGS = tuple(
    (re.compile(pattern), replacement)
    for pattern, replacement in (
        (r"(?<=\d)\.(?![\d\\.])", ""),  # 12.
        (r"(?<!\\right)\.$", ""),
        (r"(?<![\w.])(\d+\.?\d*|\.\d+)[eE]\+?(-?\d+)(?![\w.])", r"\1\\cdot 10^{\2}"),
        (r"(?<![\w./^)}])(\d+) +(\d+)/(\d+)(?![\w./])", r"(\1+\\frac{\2}{\3})"),  # 1 1/2
        (r"\*\*", "^"),
        (r"\^\(([^()]*)\)", r"^{\1}"),
        (r"(?<![\\A-Za-z])pi(?![A-Za-z])", r"\\pi "),
    )
)
_IN_BASE = re.compile(r"(?<![\w\\.])(\d[\dA-Z]*)_(?:\{(\d+)\}|(\d))")
_SPACED_NUMBERS = re.compile(r"^[^\\]*\d\s+\.?\d[^\\]*$")
_BRACES = re.compile(r"\\.|[{}]", re.DOTALL)

FLOAT_TOLERANCE = 2e-6
"""Relative; 0.333333 is 1/3."""
TOLERANCE = 1e-10
"""Relative, of irrational numbers that were written without a decimal point."""


def spelt_in_latex(answer: str) -> str:
    """An answer in which numbers as Python or a typesetter writes them are LaTeX."""
    text = _VULGAR_FRACTION.sub(lambda found: " " + unicodedata.normalize("NFKC", found[0]), answer)
    text = _RAISED.sub(lambda found: f"^{{{unicodedata.normalize('NFKC', found[0])}}}", text)
    text = _LOWERED.sub(lambda found: f"_{{{unicodedata.normalize('NFKC', found[0])}}}", text)
    text = text.translate(_SYMBOLS).strip()
    text = _GROUPS.sub(lambda found: re.sub(r"\D", "", found[0]), text)
    text = _PYTHON_ROOT.sub(r"\\sqrt{\1}", text)
    for pattern, replacement in _SPELLINGS:
        text = pattern.sub(replacement, text)
    return text


def in_base_ten(text: str) -> str:
    """The text with its numbers of another base, such as 101_2, in base ten."""

    def value(found: re.Match[str]) -> str:
        base = int(found[2] or found[3])
        try:
            return str(int(found[1], base)) if base > 1 else found[0]
        except ValueError:
            return found[0]

    return _IN_BASE.sub(value, text)


def is_junk(text: str) -> bool:
    """Whether the parser would read a text that means nothing: '{7 8', '3 7' (as 3 + 7)."""
    depth = 0
    for brace in _BRACES.findall(text):
        depth += {"{": 1, "}": -1}.get(brace, 0)
        if depth < 0:
            return True
    return depth != 0 or bool(_SPACED_NUMBERS.match(text))


def equal(prediction: str, gold: str) -> bool:
    """Whether two answers mean the same. Raises whatever the parsers raise."""
    from math_verify import verify
    from math_verify.parser import LatexExtractionConfig, normalize_latex, parse_latex_cached

    texts = [spelt_in_latex(text) for text in (gold, prediction)]
    if all(map(_IN_BASE.search, texts)):
        texts = [in_base_ten(text) for text in texts]
    if any(map(is_junk, texts)):
        return False
    config = dataclasses.replace(LatexExtractionConfig().normalization_config, boxed="last")
    gold, prediction = (normalize_latex(rf"\boxed{{{text}}}", config=config) for text in texts)
    if gold == prediction:  # it need not be parsed
        return True
    return bool(
        verify(parse_latex_cached(gold), parse_latex_cached(prediction), timeout_seconds=None)
    )


def compare_numbers_relatively() -> None:
    """Makes math-verify compare two numbers by their relative difference too: tiny ones differ."""
    from math_verify import grader
    from sympy import Basic, Float, Rational

    absolutely = grader.sympy_numeric_eq

    def near(a: Basic, b: Basic) -> bool:
        a, b = grader.safe_sympy_doit(a), grader.safe_sympy_doit(b)
        if a == b:
            return True
        tolerance = FLOAT_TOLERANCE if a.has(Float) or b.has(Float) else TOLERANCE
        if tolerance == TOLERANCE and a.is_rational and b.is_rational:
            return False
        names = sorted(a.free_symbols | b.free_symbols, key=str)
        point = {name: Rational(7 + 3 * place, 11) for place, name in enumerate(names)}
        a, b = a.subs(point).evalf(), b.subs(point).evalf()
        return bool(abs(a - b) <= tolerance * max(abs(a), abs(b)))

    def numeric_eq(a: Basic, b: Basic, float_rounding: int, numeric_precision: int) -> bool:
        if not absolutely(a, b, float_rounding, numeric_precision):
            return False
        if not (isinstance(a, Basic) and isinstance(b, Basic)):
            return True  # matrices: each entry was compared here
        return near(a, b) or near(grader.get_pct_val(a, a), grader.get_pct_val(b, b))

    grader.sympy_numeric_eq = numeric_eq


def main() -> None:
    deadline_s, memory_mb = float(sys.argv[1]), int(sys.argv[2])
    replies = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # what a library prints is no reply
    logging.disable(logging.CRITICAL)
    compare_numbers_relatively()

    limit = memory_mb << 20
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    print(json.dumps("ready"), file=replies, flush=True)
    for line in sys.stdin:
        prediction, gold = json.loads(line)
        signal.setitimer(signal.ITIMER_REAL, deadline_s)
        try:
            verdict = equal(prediction, gold)
        except MemoryError:
            os._exit(1)  # a process short of memory is not used again
        except Exception:
            verdict = False
        signal.setitimer(signal.ITIMER_REAL, 0)
        print(json.dumps(verdict), file=replies, flush=True)


if __name__ == "__main__":
    main()

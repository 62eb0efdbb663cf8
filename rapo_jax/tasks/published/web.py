"""Question sets for web search: WebWalkerQA, SimpleQA, GAIA, and BrowseComp, which is encrypted."""

from __future__ import annotations

import base64
import binascii
import hashlib
import itertools
from collections.abc import Callable, Mapping

from rapo_jax.io.jsonl import text_of
from rapo_jax.tasks.published.published import Published, Record, Taken, take_fields


def _webwalker(record: Record) -> Taken:
    return Taken(text_of(record, "question"), [text_of(record, "answer")], _difficulty(record))


def _difficulty(record: Record) -> str:
    info = record.get("info")
    if not isinstance(info, Mapping):
        raise ValueError("info is missing or no object")
    return text_of(info, "difficulty_level").lower()


def _of_difficulty(wanted: str) -> Callable[[Record], bool]:
    return lambda record: _difficulty(record) == wanted


def _gaia(record: Record) -> Taken:
    """The test split has '?' for every answer: it is scored by its publisher alone."""
    answer = text_of(record, "Final answer")
    if answer.strip() == "?":
        raise ValueError("Final answer is hidden ('?')")
    return Taken(
        text_of(record, "Question"), [answer], str(record.get("Level")), text_of(record, "task_id")
    )


def _without_file(record: Record) -> bool:
    return not str(record.get("file_name") or "").strip()


def _of_level(wanted: int) -> Callable[[Record], bool]:
    return lambda record: _without_file(record) and str(record.get("Level")) == str(wanted)


def _browsecomp(record: Record) -> Taken:
    canary = text_of(record, "canary")
    question, answer = (decrypted(text_of(record, name), canary) for name in ("problem", "answer"))
    if not question.strip() or not answer.strip():
        raise ValueError("problem or answer is blank")
    return Taken(question, [answer])


def decrypted(text: str, canary: str) -> str:
    """BrowseComp's cipher: base64 of the text's bytes XOR the SHA-256 of the canary, repeated.

    Raises:
        ValueError: it is no base64, or the canary is not the one it was encrypted with.
    """
    key = hashlib.sha256(canary.encode()).digest()
    try:
        hidden = base64.b64decode(text, validate=True)
        return bytes(a ^ b for a, b in zip(hidden, itertools.cycle(key), strict=False)).decode()
    except (binascii.Error, UnicodeDecodeError) as error:
        raise ValueError(f"cannot be decrypted with its canary ({error})") from None


_WEBWALKER = [("data/main-*.jsonl",), ("default/main/*.parquet",)]
_GAIA = [("2023/validation/metadata.jsonl",), ("2023/validation/metadata.parquet",)]
_DIFFICULTIES = ("easy", "medium", "hard")
_LEVELS = (1, 2, 3)

SETS = {
    "webwalkerqa": Published(
        offered="huggingface.co/datasets/callanwu/WebWalkerQA",
        files={
            "main": _WEBWALKER,
            **dict.fromkeys(_DIFFICULTIES, _WEBWALKER),
            "silver": [("data/silver-*.jsonl",)],
        },
        take=_webwalker,
        rows={"main": 680, "easy": 160, "medium": 280, "hard": 240},
        keep={name: _of_difficulty(name) for name in _DIFFICULTIES},
    ),
    "simpleqa": Published(
        offered="openaipublic.blob.core.windows.net/simple-evals/simple_qa_test_set.csv (see "
        "github.com/openai/simple-evals)",
        files={"test": [("simple_qa_test_set.csv",)]},
        take=take_fields("problem"),
        rows={"test": 4326},
    ),
    "gaia": Published(
        offered="huggingface.co/datasets/gaia-benchmark/GAIA (after asking for access there)",
        files={"validation": _GAIA, "text": _GAIA, **{f"level{n}": _GAIA for n in _LEVELS}},
        take=_gaia,
        rows={"validation": 165},
        keep={"text": _without_file, **{f"level{n}": _of_level(n) for n in _LEVELS}},
    ),
    "browsecomp": Published(
        offered="openaipublic.blob.core.windows.net/simple-evals/browse_comp_test_set.csv (see "
        "github.com/openai/simple-evals)",
        files={"test": [("browse_comp_test_set.csv",)]},
        take=_browsecomp,
        rows={"test": 1266},
    ),
}
"""GAIA's splits other than `validation` leave out the questions about an attached file. Papers'
103 text-only questions are a choice among those of `text`."""

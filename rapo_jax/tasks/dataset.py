"""The task over data sets: questions from a user's files, or from published sets.

A world is what was read, with a report of every file. There are no scripted agents: no demonstrator
for a cold start, no expert for the buffer, no gates.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from rapo_jax.search.corpus import read_corpus
from rapo_jax.tasks.dataset_files import SetRead, file_info, read_set
from rapo_jax.tasks.schema import SPLITS, Question, Task
from rapo_jax.text.protocol import SYSTEM_PROMPT

MAX_CORPUS_BYTES = 1 << 30


@dataclass(frozen=True)
class World:
    """Questions by split, the passages to search, and a report of each file that was read."""

    train: list[Question]
    eval: list[Question]
    passages: list[str]
    files: list[Mapping[str, object]]


def make_world(*, train: str, eval: str, documents: str, manual_dir: str, malformed: str) -> World:
    """Reads everything that task.dataset names.

    Raises:
        ValueError: a file is missing, damaged or without any usable record; or one record is
            malformed and `malformed` is 'fail'.
    """
    how = {"manual_dir": manual_dir, "malformed": malformed}
    learned, held_out = (  # both are blank where only suites are evaluated
        read_set(wanted, key=f"task.dataset.{name}", **how) if wanted else SetRead([], [])
        for name, wanted in (("train", train), ("eval", eval))
    )
    passages, files = _read_documents(documents, malformed)
    files = [*learned.files, *held_out.files, *files]
    files += shared_questions(learned.questions, held_out.questions)
    return World(learned.questions, held_out.questions, passages, files)


def shared_questions(
    train: Sequence[Question], held_out: Sequence[Question]
) -> list[Mapping[str, object]]:
    """A warning, as one of a world's `files`, if training questions are held out too."""
    shared = {q.question for q in train} & {q.question for q in held_out}
    if not shared:
        return []
    return [{"summary": f"warning: {len(shared)} of the held-out questions are training questions"}]


def _read_documents(path: str, malformed: str) -> tuple[list[str], list[Mapping[str, object]]]:
    if not path:
        return [], []
    if Path(path).is_file() and Path(path).stat().st_size > MAX_CORPUS_BYTES:
        raise ValueError(
            f"task.dataset.documents={path!r}: larger than {MAX_CORPUS_BYTES >> 30} GiB, too much "
            "for the search inside a run; serve it and set tools.search.kind='retrieval'"
        )
    try:
        passages, report = read_corpus(path, malformed="skip")
    except ValueError as error:
        raise ValueError(f"task.dataset.documents: {error}") from None
    if report.malformed and malformed == "fail":
        raise ValueError(
            f"task.dataset.documents={path!r}: {report.summary()}; fix the lines, or set "
            "task.dataset.malformed='skip'"
        )
    return [passage.contents for passage in passages], [file_info(report)]


def questions(world: World, split: str) -> list[Question]:
    """All questions of a split; those of the off-policy agent are the training questions."""
    if split not in SPLITS:
        raise ValueError(f"split={split!r}: must be one of {', '.join(SPLITS)}")
    return world.eval if split == "eval" else world.train


def documents(world: World) -> list[str]:
    """The passages of task.dataset.documents; none where the search is a service."""
    return world.passages


def corpus(world: World) -> list[str]:
    """What a new tokenizer is trained on; a run on real data has its model's tokenizer."""
    return [SYSTEM_PROMPT, *(q.question for q in world.train), *world.passages]


def sources(world: World) -> list[Mapping[str, object]]:
    """The report of each file, and a hash of all questions."""
    digest = hashlib.sha256()
    for question in (*world.train, *world.eval):
        digest.update(repr(question).encode("utf-8", "surrogatepass"))
    return [*world.files, {"sha256": digest.hexdigest()}]


def unscripted_task(make_world: Callable[..., World]) -> Task:
    """A task of questions and passages only."""
    return Task(
        make_world=make_world,
        questions=questions,
        documents=documents,
        corpus=corpus,
        system_prompt=SYSTEM_PROMPT,
        sources=sources,
    )

"""Questions on disk: a resumable, host-sharded stream for training, a list for evaluation.

Any random-access sequence of `Question` is a source; `prepare_questions` makes those of a task.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import io
import json
import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Protocol, TypedDict

from rapo_jax.tasks.schema import SPLITS, Question, TaskWorld

ENOUGH_ROWS = 2**60
"""Rows of an "endless" stream: grain overflows when it batches sys.maxsize rows one by one."""

ROWS_AT_A_TIME = 1024


class QuestionSource(Protocol):
    """Random access to the questions of one split."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Question: ...

    def __iter__(self) -> Iterator[Question]: ...


class _Row(TypedDict):
    id: bytes
    question: bytes
    answers: Sequence[bytes]
    kind: bytes
    source: bytes


class _Rows(Protocol):
    """A data source of tensorflow_datasets."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> _Row: ...

    def __getitems__(self, indices: Sequence[int], /) -> Sequence[_Row]: ...


class QuestionFiles:
    """The questions of one split in array_record files, read by index."""

    def __init__(self, rows: _Rows) -> None:
        self._rows = rows

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int, /) -> Question:
        return _question(self._rows[index])

    def __iter__(self) -> Iterator[Question]:
        """All of them in order; several times faster than one by one."""
        for start in range(0, len(self), ROWS_AT_A_TIME):
            indices = range(start, min(start + ROWS_AT_A_TIME, len(self)))
            yield from map(_question, self._rows.__getitems__(indices))


def digest_of(questions: Iterable[Question]) -> str:
    """SHA-256 over all questions in their order."""
    digest = hashlib.sha256()
    for question in questions:
        digest.update(json.dumps(dataclasses.asdict(question)).encode() + b"\n")
    return digest.hexdigest()


def check_same_questions(digests: Sequence[Mapping[str, str]]) -> None:
    """Refuses processes whose questions differ; `digests` are those of each, by split.

    Raises:
        ValueError: names the split and the process.
    """
    for process, each in enumerate(digests):
        for split, digest in each.items():
            if digest != digests[0][split]:
                raise ValueError(
                    f"task: process {process} has other questions in {split!r} than process 0; "
                    "give all of them the same files, and tasks of yours one order (not a set's)"
                )


def _question(row: _Row) -> Question:
    return Question(
        id=row["id"].decode(),
        question=row["question"].decode(),
        answers=tuple(answer.decode() for answer in row["answers"]),
        kind=row["kind"].decode(),
        source=row["source"].decode(),
    )


class QuestionStream:
    """Endless batches of questions with a position that can be saved; see `question_stream`."""

    def __init__(self, batches: Any, *, seed: int, batch: int, rows: int, digest: str = "") -> None:
        """`digest` is that of the source, which a position belongs to."""
        self._batches = batches
        self._seed, self._batch, self._rows, self._digest = seed, batch, rows, digest

    def __iter__(self) -> Iterator[list[Question]]:
        return self

    def __next__(self) -> list[Question]:
        return next(self._batches)

    @property
    def epochs(self) -> float:
        """Epochs that were drawn, of all processes."""
        return self._taken * self._batch / self._rows

    @property
    def _taken(self) -> int:
        """Global batches so far."""
        return int(self._batches.get_state()["next_index"])

    def get_state(self) -> dict[str, int | str]:
        """The position, equal on every process: global batches so far, and the stream."""
        stream = {"seed": self._seed, "batch": self._batch, "rows": self._rows}
        return {"next_index": self._taken, **stream, "questions": self._digest}

    def set_state(self, state: Mapping[str, int | str]) -> None:
        """Continues at a saved position; ValueError for the position of another stream.

        Positions of versions that did not save the questions' digest are accepted.
        """
        present = self.get_state()
        saved = {"questions": self._digest, **state}
        if set(saved) != set(present) or not isinstance(saved["next_index"], int):
            raise ValueError(f"data position {dict(state)!r}: must have the keys {sorted(present)}")
        for key in ("seed", "batch", "rows", "questions"):
            if saved[key] != present[key]:
                raise ValueError(
                    f"data position with {key}={saved[key]}: this stream has {key}={present[key]}; "
                    "resume with the config and data set that the checkpoint was made with"
                )
        if saved["next_index"] < 0:
            raise ValueError(f"data position next_index={saved['next_index']}: must be 0 or more")
        self._batches.set_state({"next_index": saved["next_index"]})


def question_stream(
    source: QuestionSource, *, seed: int, batch: int, process_index: int, process_count: int
) -> QuestionStream:
    """Endless shuffled batches of a source, this process's `batch / process_count` rows of each.

    Each epoch is a new permutation of all rows, and epochs follow each other without a gap: every
    question occurs exactly once in an epoch. If the number of rows is no multiple of `batch`, the
    batch with the last rows of an epoch and the first of the next may hold a question twice. Each
    process takes one block of a batch's rows, in the order of processes, and reads no others: the
    global batch does not depend on `process_count`, and a position saved with one number of
    processes may be resumed with another.
    """
    import grain.python as grain

    if len(source) == 0:
        raise ValueError("data: the training split is empty; there is nothing to draw from")
    if batch < 1 or process_count < 1 or batch % process_count:
        raise ValueError(
            f"rollout.questions={batch}: must be a positive multiple of the number of processes, "
            f"{process_count}"
        )
    if not 0 <= process_index < process_count:
        raise ValueError(f"process_index={process_index}: must be 0 to {process_count - 1}")
    indices = grain.MapDataset.range(len(source)).seed(seed).shuffle().repeat()
    each = batch // process_count
    local = slice(process_index * each, (process_index + 1) * each)
    batches = (
        indices[:ENOUGH_ROWS]
        .batch(batch, batch_fn=list)
        .map(lambda batch_indices: [source[int(i)] for i in batch_indices[local]])
    )
    no_prefetch = grain.ReadOptions(num_threads=0, prefetch_buffer_size=0)
    iterator = iter(batches.to_iter_dataset(no_prefetch))
    digest = digest_of(source)
    return QuestionStream(iterator, seed=seed, batch=batch, rows=len(source), digest=digest)


def load_questions(source: QuestionSource) -> list[Question]:
    """All questions of a source in their order on disk, for evaluation."""
    return list(source)


def prepare_questions(
    task: str, parameters: Mapping[str, object], world: TaskWorld, *, data_dir: str
) -> dict[str, QuestionFiles]:
    """The splits of a task as array_record files below `data_dir`, generated if they are missing.

    `world` is what the task made of `parameters`.

    Raises:
        ValueError: a split is empty.
        RuntimeError: the files do not hold exactly what the task generates.
    """
    with _quiet():
        from rapo_jax.tasks.builder import prepared_builder

        builder = prepared_builder(task, parameters, world, data_dir=data_dir)
        wanted, stored = builder.generate(), builder.stored()
        files = {
            split: QuestionFiles(builder.as_data_source(split=split)) for split in stored.values()
        }
    for split, source in files.items():
        check_complete(source, wanted[split], where=str(builder.data_path), split=split)
    return {split: files[stored[split]] for split in SPLITS}


def check_complete(
    source: QuestionSource, wanted: Sequence[Question], *, where: str, split: str
) -> None:
    """Raises unless a source holds exactly the generator's questions, all of them, in order."""
    stored = load_questions(source)
    if stored != list(wanted):
        raise RuntimeError(
            f"{where}: split {split!r} holds {len(stored)} rows and not the {len(wanted)} that the "
            "task generates; delete this folder and start again"
        )


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keeps the data libraries from printing progress bars, banners and warnings.

    absl gives the root logger a handler where it has none; that one would write to where stderr
    points here, and so swallow every later warning of the process.
    """
    import absl.logging

    verbosity, handlers = absl.logging.get_verbosity(), logging.root.handlers[:]
    absl.logging.set_verbosity(absl.logging.ERROR)
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            yield
    finally:
        absl.logging.set_verbosity(verbosity)
        logging.root.handlers[:] = handlers

"""The stream of training questions: epochs, processes, and saved positions."""

from __future__ import annotations

import dataclasses
import json
import logging

import absl.logging
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rapo_jax.tasks import Question
from rapo_jax.tasks.schema import question_of
from rapo_jax.tasks.stream import (
    _quiet,
    check_complete,
    check_same_questions,
    digest_of,
    load_questions,
    question_stream,
)


def made_up(count: int) -> list[Question]:
    return [Question(str(i), f"question {i}", (str(i),), "k", "test") for i in range(count)]


def test_a_question_that_went_through_json_is_the_same_one():
    (question,) = made_up(1)
    assert question_of(json.loads(json.dumps(dataclasses.asdict(question)))) == question


def stream(source, *, seed=0, batch=4, process_index=0, process_count=1):
    return question_stream(
        source,
        seed=seed,
        batch=batch,
        process_index=process_index,
        process_count=process_count,
    )


def taken(batches, count):
    return [[question.id for question in next(batches)] for _ in range(count)]


@settings(max_examples=20, deadline=None)
@given(rows=st.integers(1, 13), batch=st.integers(1, 6), seed=st.integers(0, 5))
def test_every_question_comes_once_an_epoch_whatever_the_batch_size(rows, batch, seed):
    epochs = 3
    batches = taken(stream(made_up(rows), seed=seed, batch=batch), -(-epochs * rows // batch))
    flat = [name for names in batches for name in names]
    for epoch in range(epochs):
        assert sorted(flat[epoch * rows : (epoch + 1) * rows]) == sorted(map(str, range(rows)))
    assert all(len(names) == batch for names in batches)


def test_epochs_and_seeds_have_different_orders():
    first, second = taken(stream(made_up(50), batch=50), 2)
    assert first != second
    assert taken(stream(made_up(50), batch=50, seed=1), 1) != [first]
    assert taken(stream(made_up(50), batch=50), 1) == [first]


def test_each_process_takes_its_block_of_every_global_batch():
    whole = taken(stream(made_up(10), batch=6), 5)
    for count in (2, 3):
        parts = [
            taken(stream(made_up(10), batch=6, process_index=p, process_count=count), 5)
            for p in range(count)
        ]
        for step, names in enumerate(whole):
            assert names == [name for part in parts for name in part[step]]


def test_a_process_reads_only_its_questions():
    class Noting(list):
        read: list[int] = []

        def __getitem__(self, index):
            self.read.append(index)
            return super().__getitem__(index)

    source = Noting(made_up(8))
    (names,) = taken(stream(source, batch=8, process_index=1, process_count=4), 1)
    assert sorted(map(str, source.read)) == sorted(names) and len(names) == 2


def test_the_order_of_questions_is_that_of_shuffled_rows():
    import grain.python as grain

    rows = grain.MapDataset.source(made_up(10)).seed(3).shuffle().repeat()
    flat = [name for names in taken(stream(made_up(10), seed=3, batch=4), 9) for name in names]
    assert flat == [rows[i].id for i in range(36)]


def test_a_stream_continues_exactly_at_its_saved_position():
    straight = stream(made_up(10))
    expected = taken(straight, 9)
    before = stream(made_up(10))
    taken(before, 4)
    position = json.loads(json.dumps(before.get_state()))
    after = stream(made_up(10))
    after.set_state(position)
    assert taken(after, 5) == expected[4:]
    assert after.get_state() == straight.get_state()


def test_a_position_may_be_resumed_with_another_number_of_processes():
    expected = taken(stream(made_up(10)), 5)[3:]
    before = stream(made_up(10), process_index=1, process_count=2)
    taken(before, 3)
    after = stream(made_up(10))
    after.set_state(before.get_state())
    assert taken(after, 2) == expected


@pytest.mark.parametrize(
    ("change", "named"),
    [({"seed": 1}, "seed=1"), ({"rows": 9}, "rows=9"), ({"next_index": -1}, "next_index=-1")],
)
def test_the_position_of_another_stream_is_refused(change, named):
    batches = stream(made_up(10))
    with pytest.raises(ValueError, match=named):
        batches.set_state({**batches.get_state(), **change})
    with pytest.raises(ValueError, match="must have the keys"):
        batches.set_state({"next_index": 0})


def test_the_position_in_an_edited_file_with_as_many_questions_is_refused():
    position = stream(made_up(10)).get_state()
    edited = [*made_up(9), Question("9", "another question", ("9",), "k", "test")]
    with pytest.raises(ValueError, match="questions=.*the config and data set"):
        stream(edited).set_state(position)


def test_a_position_of_a_version_that_saved_no_digest_is_accepted():
    before, after = stream(made_up(10)), stream(made_up(10))
    expected = taken(before, 3)[2:]
    position = after.get_state() | {"next_index": 2}
    del position["questions"]
    after.set_state(position)
    assert taken(after, 1) == expected


def test_an_empty_data_set_is_refused():
    with pytest.raises(ValueError, match="empty"):
        stream([])


def test_a_batch_that_processes_cannot_share_is_refused():
    with pytest.raises(ValueError, match="rollout.questions=4"):
        stream(made_up(10), batch=4, process_count=3)
    with pytest.raises(ValueError, match="process_index=2"):
        stream(made_up(10), batch=4, process_index=2, process_count=2)


def test_loaded_questions_are_all_rows_in_order():
    assert load_questions(made_up(5)) == made_up(5)


def test_files_that_lost_or_changed_a_row_are_refused():
    check_complete(made_up(5), made_up(5), where="here", split="train")
    for damaged in (made_up(4), made_up(5)[::-1], []):
        with pytest.raises(RuntimeError, match=f"here.*holds {len(damaged)} rows"):
            check_complete(damaged, made_up(5), where="here", split="train")


def test_processes_with_other_questions_or_another_order_are_refused():
    asked = [Question(str(i), "who ?", (str(i),), "k", "s") for i in range(3)]
    same = {"train": digest_of(asked), "eval": digest_of(asked[:1])}
    check_same_questions([same, dict(same)])
    for others in (asked[::-1], asked[:2], [*asked[:2], Question("2", "who ?", ("x",), "k", "s")]):
        with pytest.raises(ValueError, match="task: process 1 has other questions in 'train'"):
            check_same_questions([same, same | {"train": digest_of(others)}])


def test_what_quiets_the_data_libraries_leaves_later_warnings_of_the_process_alone(
    monkeypatch, capsys
):
    monkeypatch.setattr(logging.root, "handlers", [])
    with _quiet():
        absl.logging.warning("of a library, which gives the root logger a handler")
    assert logging.root.handlers == []
    logging.getLogger("rapo_jax.tools").warning("tool 'python' failed")
    assert capsys.readouterr().err == "tool 'python' failed\n"

"""The task over data sets: questions from files, with the functions of every task."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest

from rapo_jax.tasks import SPLITS, TASKS, Question
from rapo_jax.tasks.dataset import MAX_CORPUS_BYTES
from rapo_jax.tasks.dataset_files import answers_of, read_set
from rapo_jax.tasks.stream import load_questions, prepare_questions

TASK = TASKS["dataset"]
RECORDS = [
    {"id": "a", "question": "Who?", "answer": "Anna", "kind": "easy", "source": "quiz"},
    {"id": 2, "question": "How many?", "answers": ["2", "two", "2"]},
    {"question": "Where?", "answer": 5},
    {"question": "Where?", "answer": ["Oslo"]},
]


def write(path, records):
    lines = [record if isinstance(record, str) else json.dumps(record) for record in records]
    Path(path).write_text("".join(line + "\n" for line in lines))
    return str(path)


def read(wanted, **changes):
    how = {"key": "task.dataset.train", "manual_dir": "", "malformed": "skip"}
    return read_set(wanted, **how | changes)


def make_world(folder, **changes):
    named = {"train": write(folder / "train.jsonl", RECORDS), "documents": ""}
    named |= {"eval": write(folder / "eval.jsonl", RECORDS[:2])}
    parameters = named | {"manual_dir": "", "malformed": "skip"} | changes
    return parameters, TASK.make_world(**parameters)


def test_a_record_becomes_a_question_and_missing_fields_are_filled_in(tmp_path):
    path = write(tmp_path / "qa.jsonl", RECORDS)
    anna, two, five, oslo = read(path).questions
    assert anna == Question("a", "Who?", ("Anna",), "easy", "quiz")
    assert two == Question("2", "How many?", ("2", "two"), "qa.jsonl", "qa.jsonl")
    assert (five.answers, oslo.answers) == (("5",), ("Oslo",))
    assert five.id.startswith("text:") and oslo.id == f"{five.id}#2"


@pytest.mark.parametrize("blank", ["", "  ", None])
def test_a_record_with_a_blank_id_is_named_by_its_text_as_one_without(tmp_path, blank):
    bare = [{"question": text, "answer": "x"} for text in ("Who?", "Where?", "Who?")]
    wanted = [q.id for q in read(write(tmp_path / "bare.jsonl", bare)).questions]
    records = [record | {"id": blank} for record in bare]
    assert [q.id for q in read(write(tmp_path / "qa.jsonl", records)).questions] == wanted
    assert len(set(wanted)) == 3


def test_parquet_gives_the_questions_that_json_lines_give(tmp_path):
    records = [{"question": f"{n}?", "answers": [str(n), "x"]} for n in range(3)]
    table = tmp_path / "qa.parquet"
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(records), table)
    found = read(str(table)).questions
    lines = read(write(tmp_path / "qa.jsonl", records)).questions
    assert [(q.id, q.question, q.answers) for q in found] == [
        (q.id, q.question, q.answers) for q in lines
    ]


def test_a_whole_number_of_a_float_column_is_an_integer(tmp_path):
    records = [{"question": f"{n}?", "answer": n} for n in (18.0, -3.0, 1.5, 1e20)]
    table = tmp_path / "qa.parquet"
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(records), table)
    wanted = [("18",), ("-3",), ("1.5",), ("1e+20",)]
    assert [q.answers for q in read(str(table)).questions] == wanted
    assert [q.answers for q in read(write(tmp_path / "qa.jsonl", records)).questions] == wanted


def test_several_files_may_be_named_and_of_each_the_first_questions(tmp_path):
    one = write(tmp_path / "1.jsonl", [{"question": f"a{n}?", "answer": "x"} for n in range(5)])
    two = write(tmp_path / "2.jsonl", [{"question": f"b{n}?", "answer": "x"} for n in range(5)])
    found = read(f"{one}[:2], {two}")
    asked = " ".join(q.question for q in found.questions)
    assert asked == "a0? a1? b0? b1? b2? b3? b4?"
    assert [file["records"] for file in found.files] == [5, 5]


@pytest.mark.parametrize(
    ("record", "reason"),
    [
        ({"question": "Who?"}, "no answer and no answers"),
        ({"question": "Who?", "answer": "x", "answers": ["x"]}, "both answer and answers"),
        ({"question": "Who?", "answer": ""}, "answer is blank"),
        ({"question": "Who?", "answer": []}, "answer is an empty list"),
        ({"question": "Who?", "answer": ["x", None]}, "answer is no text but null"),
        ({"question": "Who?", "answer": True}, "answer is no text but true or false"),
        ({"question": 3, "answer": "x"}, "question is no text but a number"),
        ({"answer": "x"}, "question is missing"),
        ({"id": "a", "question": "Whose?", "answer": "x"}, "duplicate id 'a'"),
        ({"id": 1.5, "question": "Whose?", "answer": "x"}, "id is no text and no whole number"),
        ("{", "not JSON"),
    ],
)
def test_a_malformed_record_is_counted_with_its_line_or_ends_the_reading(tmp_path, record, reason):
    path = write(tmp_path / "qa.jsonl", [RECORDS[0], record, RECORDS[1]])
    found = read(path)
    assert [q.id for q in found.questions] == ["a", "2"]
    assert (found.files[0]["lines"], found.files[0]["malformed"]) == (3, 1)
    number, problem = found.files[0]["malformed_lines"][0]
    assert number == 2 and reason in problem
    assert "1 malformed (line 2: " in found.files[0]["summary"]
    with pytest.raises(ValueError, match="line 2: .*task.dataset.malformed='skip'"):
        read(path, malformed="fail")


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        ("", "task.dataset.train='': name a file of questions"),
        ("qa.json", "task.dataset.train='qa.json': there is no such file, and no such published"),
        ("gsm9k:train", "did you mean 'gsm8k'"),
        ("gsm8k:dev", "task.dataset.train='gsm8k:dev': gsm8k has the splits train, test"),
        ("gsm8k:train", "its files are missing; get it from github.com/openai/grade-school-math"),
    ],
)
def test_an_unknown_file_or_set_is_refused_with_the_known_ones(tmp_path, wanted, message):
    with pytest.raises(ValueError) as caught:
        read(wanted, manual_dir=str(tmp_path))
    assert message in str(caught.value)


def test_more_questions_than_a_file_has_and_an_id_that_two_files_share_are_refused(tmp_path):
    path = write(tmp_path / "qa.jsonl", RECORDS)
    for limit in (0, 5):
        with pytest.raises(ValueError, match="qa.jsonl has 4 questions; take from 1"):
            read(f"{path}[:{limit}]")
    with pytest.raises(ValueError, match="two of its files hold a question with the id 'a'"):
        read(f"{path},{write(tmp_path / 'b.jsonl', RECORDS[:1])}")


def test_answers_keep_their_order_and_come_once():
    assert answers_of({"answers": ["b", "a", "b", 3, 0.5]}) == ("b", "a", "3", "0.5")
    assert answers_of({"answer": 10**400}) == (str(10**400),)  # no float holds it
    assert answers_of({"answers": '["20", "twenty"]'}) == ("20", "twenty")  # a cell of a table
    for text in ("[0, 1]", '["a" or "b"]', '["a", 1'):
        assert answers_of({"answers": text}) == answers_of({"answer": text}) == (text,)


def test_the_files_of_a_run_hold_exactly_what_was_read(tmp_path):
    parameters, world = make_world(tmp_path)
    sources = prepare_questions("dataset", parameters, world, data_dir=str(tmp_path / "data"))
    assert load_questions(sources["train"]) == read(parameters["train"]).questions
    assert load_questions(sources["eval"]) == read(parameters["eval"]).questions
    assert load_questions(sources["expert"]) == load_questions(sources["train"])
    assert set(sources) == set(SPLITS)
    kept = {path.name.partition("-")[2][:5] for path in tmp_path.rglob("*.array_record*")}
    assert kept == {"train", "eval."}  # expert is train: not written twice


def test_a_changed_file_is_another_data_set_and_the_manifest_keeps_the_counts(tmp_path):
    found = []
    for answer in ("Anna", "Bob"):
        parameters, _ = make_world(tmp_path)
        write(parameters["train"], [RECORDS[0] | {"answer": answer}, "{"])
        world = TASK.make_world(**parameters)
        sources = prepare_questions("dataset", parameters, world, data_dir=str(tmp_path / "data"))
        found.append(load_questions(sources["train"])[0].answers)
    assert found == [("Anna",), ("Bob",)]
    manifests = [path.read_text() for path in (tmp_path / "data").rglob("dataset_info.json")]
    assert len(manifests) == 2
    for manifest in manifests:
        info = json.loads(json.loads(manifest)["configDescription"])[2]
        assert (info["records"], info["malformed"], info["malformed_lines"][0][0]) == (1, 1, 2)


def test_a_changed_file_of_held_out_questions_is_another_data_set_too(tmp_path):
    parameters, _ = make_world(tmp_path)
    for answer in ("Anna", "Bob"):
        write(parameters["eval"], [RECORDS[0] | {"answer": answer}])
        world = TASK.make_world(**parameters)
        sources = prepare_questions("dataset", parameters, world, data_dir=str(tmp_path / "data"))
        assert load_questions(sources["eval"])[0].answers == (answer,)


def test_held_out_questions_that_are_trained_on_give_a_warning(tmp_path):
    summaries = [source.get("summary", "") for source in TASK.sources(make_world(tmp_path)[1])]
    assert "warning: 2 of the held-out questions are training questions" in summaries
    _, apart = make_world(tmp_path, eval=write(tmp_path / "b.jsonl", [RECORDS[2]]), train=write(
        tmp_path / "a.jsonl", RECORDS[:2]))  # fmt: skip
    assert not any("warning" in source.get("summary", "") for source in TASK.sources(apart))


def test_documents_are_a_corpus_to_search(tmp_path):
    corpus = write(
        tmp_path / "corpus.jsonl",
        [{"id": 1, "contents": "A is b."}, {"id": 2, "title": "C", "text": "c."}, {"id": 1}],
    )
    _, world = make_world(tmp_path, documents=corpus)
    assert TASK.documents(world) == ["A is b.", '"C"\nc.']
    malformed = {source.get("path"): source.get("malformed") for source in TASK.sources(world)}
    assert malformed[corpus] == 1
    with pytest.raises(ValueError, match="task.dataset.documents=.*task.dataset.malformed='skip'"):
        make_world(tmp_path, documents=corpus, malformed="fail")
    assert TASK.documents(make_world(tmp_path)[1]) == []
    with open(tmp_path / "wiki.jsonl", "wb") as file:
        file.truncate(MAX_CORPUS_BYTES + 1)  # takes no room on disk
    with pytest.raises(ValueError, match="larger than 1 GiB, .*tools.search.kind='retrieval'"):
        make_world(tmp_path, documents=str(tmp_path / "wiki.jsonl"))


def test_a_scripted_agent_of_this_task_is_refused_with_the_remedy():
    for asked in (TASK.expert, TASK.demonstrator, TASK.injector, TASK.decision):
        with pytest.raises(
            ValueError, match="model.folder.*buffer.files.*buffer.agent='checkpoint"
        ):
            asked(None, error=0.1)


@pytest.mark.parametrize(("name", "content"), [("a.json", '{"data": [1]}'), ("b.jsonl", "")])
def test_a_file_without_any_question_is_refused_by_its_key(tmp_path, name, content):
    (tmp_path / name).write_text(content)
    with pytest.raises(ValueError, match=rf"task\.dataset\.eval: .*{name}: no usable"):
        make_world(tmp_path, eval=str(tmp_path / name))
    with pytest.raises(ValueError, match=rf"task\.dataset\.documents: .*{name}: no usable"):
        make_world(tmp_path, documents=str(tmp_path / name))


@pytest.mark.parametrize("split", ["train", "eval"])
def test_a_task_without_questions_of_a_split_is_refused(tmp_path, split):
    parameters, world = make_world(tmp_path)
    empty = dataclasses.replace(world, **{split: []})
    with pytest.raises(ValueError, match=rf"task\.name='dataset': .* no questions in '{split}'"):
        prepare_questions("dataset", parameters, empty, data_dir=str(tmp_path / "data"))

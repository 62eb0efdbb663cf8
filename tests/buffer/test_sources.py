"""Files that fill a buffer: the four records, rewards, origins, and what is refused."""

from __future__ import annotations

import gzip
import json
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rapo_jax.buffer import sources
from rapo_jax.buffer.sources import Imported, read_sources
from rapo_jax.buffer.trajectories import AgentTrajectory, Splitting, split
from rapo_jax.tasks import Question, outcome_reward

STEPS = [
    "<think>a</think><search>x</search><result>1</result>",
    "<think>b</think><python>y</python><result>2</result>",
    "<think>c</think><answer>\\boxed{2}</answer>",
]
RESPONSE = "".join(STEPS)
KNOWN = Question("known-1", "what is known?", ("2", "two"), "kind", "here")
MESSAGES = [
    {"role": "user", "content": "what is asked?"},
    {"role": "assistant", "tool_calls": [{"function": {"name": "search", "arguments": "x"}}]},
    {"role": "tool", "content": "1"},
    {"role": "assistant", "content": "2"},
]


def write(path, *records) -> str:
    lines = (record if isinstance(record, str) else json.dumps(record) for record in records)
    path.write_text("\n".join(lines) + "\n")
    return str(path)


def read(*files, malformed="fail", mask="", max_chars=1000, most_records=0) -> Imported:
    return read_sources(
        files,
        malformed=malformed,
        questions=[KNOWN],
        score=outcome_reward,
        mask=mask,
        max_chars=max_chars,
        most_records=most_records,
    )


def test_of_each_file_at_most_so_many_records_are_read(tmp_path):
    records = [{"question": f"{i}?", "steps": STEPS, "reward": 1.0} for i in range(5)]
    paths = [write(tmp_path / f"{name}.jsonl", *records, "{") for name in "ab"]
    imported = read(*paths, most_records=2)  # the malformed lines are never reached
    assert len(imported.trajectories) == 4
    assert [(report.records, report.lines) for report in imported.reports] == [(2, 2), (2, 2)]
    assert len(read(*paths, malformed="skip").trajectories) == 10


@pytest.mark.parametrize(
    "record",
    [
        {"question": "what is asked?", "response": RESPONSE},
        {"question": "what is asked?", "response": RESPONSE + "<|im_end|>\n<|endoftext|>"},
        {"question": "what is asked?", "steps": STEPS},
    ],
    ids=["response", "with end tokens", "steps"],
)
def test_a_trajectory_is_read_step_by_step_with_the_reward_of_its_answers(tmp_path, record):
    (trajectory,) = read(write(tmp_path / "mine.jsonl", record | {"answers": ["2"]})).trajectories
    assert trajectory.steps == STEPS and trajectory.question == "what is asked?"
    assert trajectory.reward == outcome_reward(RESPONSE, ["2"]) == pytest.approx(1.1)
    assert trajectory.origin == "file:mine.jsonl"


def test_a_chat_is_read_as_a_trajectory(tmp_path):
    (trajectory,) = read(write(tmp_path / "a", {"messages": MESSAGES, "answer": "2"})).trajectories
    assert trajectory.question == "what is asked?"
    assert trajectory.steps == [
        "<think></think><search>x</search><result> 1</result>",
        "<think></think><answer>\\boxed{2}</answer>",
    ]
    assert trajectory.reward == 1.0
    renamed = write(tmp_path / "b", {"messages": MESSAGES, "reward": 0, "question": "the real one"})
    assert read(renamed).trajectories[0].question == "the real one"


def test_a_retrieved_trace_in_a_response_is_cut_out(tmp_path):
    text = STEPS[0] + "<retrieve>" + STEPS[1] + "</retrieve>" + STEPS[2]
    (trajectory,) = read(
        write(tmp_path / "a", {"question": "q", "response": text, "reward": 1})
    ).trajectories
    assert trajectory.steps == [STEPS[0], STEPS[2]]


def test_the_files_reward_counts_before_its_answers(tmp_path):
    record = {"question": "q", "response": RESPONSE, "reward": 0.25, "answers": ["2"]}
    assert read(write(tmp_path / "a", record)).trajectories[0].reward == 0.25


def test_a_question_of_the_run_needs_no_answers_and_gets_its_id(tmp_path):
    record = {"question": " what is known?\n", "response": RESPONSE}
    (trajectory,) = read(write(tmp_path / "a", record)).trajectories
    assert (trajectory.question_id, trajectory.reward) == ("known-1", pytest.approx(1.1))


def test_the_same_question_has_one_id_in_every_file_and_others_have_others(tmp_path):
    def record(**more):
        return {"response": RESPONSE, "reward": 1} | more

    first = write(tmp_path / "a", record(question="q"), record(question="r"))
    second = write(tmp_path / "b", record(question="q "), record(question="q", question_id="mine"))
    ids = [trajectory.question_id for trajectory in read(first, second).trajectories]
    assert ids[0] == ids[2] and len(set(ids)) == 3 and ids[3] == "mine"


def test_each_record_keeps_its_origin(tmp_path):
    step = {"key": "k", "value": "v", "reward": 1}
    files = [
        write(tmp_path / "a.jsonl", step, step | {"value": "w", "origin": "qwen"}),
        write(tmp_path / "b.jsonl", {"question": "q", "steps": STEPS, "reward": 1, "origin": "me"}),
    ]
    found = read(*files)
    assert [step_trace.origin for step_trace in found.step_traces] == ["file:a.jsonl", "qwen"]
    assert [trajectory.origin for trajectory in found.trajectories] == ["me"]


def test_an_official_record_and_our_split_of_the_same_state_have_the_same_key(tmp_path):
    trajectory = AgentTrajectory("text", "what is it?", STEPS, 1.0, "expert")
    ours = split(trajectory, Splitting("step", True, mask=r"\d+", max_chars=70))
    records = [
        {"key": "what is it?\n" + "".join(STEPS[:t]), "value": step, "reward": 1, "origin": "x"}
        for t, step in enumerate(STEPS)
    ]
    read_back = read(write(tmp_path / "a", *records), mask=r"\d+", max_chars=70).step_traces
    assert [(i.key, i.value, i.step) for i in read_back] == [(i.key, i.value, i.step) for i in ours]
    assert len({i.question_id for i in read_back}) == 1


def test_the_step_of_an_official_record_is_the_number_of_results_before_it(tmp_path):
    first = "<think>t</think><search>a</search><result>b</result>"
    key = f"q\n{first}<search>c</search><result>d</result>"  # a step need not begin with a thought
    path = write(tmp_path / "a", {"key": key, "value": "<search>e</search>", "reward": 1})
    assert [step_trace.step for step_trace in read(path).step_traces] == [2]


GOOD = {"question": "q", "response": RESPONSE, "reward": 1.0}


@pytest.mark.parametrize(
    ("record", "problem"),
    [
        ({"prompt": "q", "completion": "r"}, "none of key, response, steps and messages is there"),
        ({}, "none of key, response, steps and messages is there (there are no keys)"),
        ({"response": RESPONSE, "reward": 1}, "question is missing (there are response, reward)"),
        ({"question": "q", "response": RESPONSE}, "neither reward nor answers"),
        (GOOD | {"reward": "1"}, "reward is no number but text"),
        (GOOD | {"reward": True}, "reward is no number but true or false"),
        (GOOD | {"response": "no tags"}, "response holds none of the protocol's tags"),
        (GOOD | {"response": f"<|im_start|>user\nq{RESPONSE}"}, "response holds the tokens of sev"),
        (GOOD | {"response": "<retrieve></retrieve>"}, "response holds no step"),
        (GOOD | {"question_id": 3}, "question_id is no text but a number"),
        (GOOD | {"origin": ""}, "origin is blank"),
        (GOOD | {"id": [1]}, "id is no text and no whole number"),
        ({"question": "q", "steps": "", "reward": 1}, "steps is blank"),
        ({"question": "q", "steps": ["a", 1], "reward": 1}, "steps is no text but a number"),
        ({"question": "q", "steps": ["<|im_end|>"], "reward": 1}, "steps holds no step"),
        ({"question": "q", "steps": ["a", "b"], "reward": 1}, "steps holds none of the protocol's"),
        ({"key": "k", "value": "<|im_end|>", "reward": 1}, "value holds no step"),
        ({"messages": "hello", "reward": 1}, "messages is no list"),
        ({"messages": MESSAGES[:1], "reward": 1}, "messages hold no answer of an assistant"),
        ({"key": "k", "value": "v"}, "reward is missing (there are key, value)"),
        ({"key": "k", "value": " ", "reward": 1}, "value is blank"),
        ({"key": None, "value": "v", "reward": 1}, "key is no text but null"),
        ({"question": "q", "response": RESPONSE, "answers": []}, "answers is no list of texts"),
        (GOOD, "the same record as on an earlier line"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_malformed_record_is_reported_with_its_line(tmp_path, record, problem):
    path = write(tmp_path / "a", GOOD, "", record, GOOD | {"question": "r"})
    found = read(path, malformed="skip")
    assert len(found.trajectories) == 2
    ((number, problem_read),) = found.reports[0].malformed_lines
    assert number == 3 and problem_read.startswith(problem)
    with pytest.raises(ValueError, match=r"a, line 3: .*; fix the line, or set buffer.malformed"):
        read(path)


def test_an_id_occurs_once_in_a_file(tmp_path):
    first = GOOD | {"id": "7"}
    path = write(tmp_path / "a", first, GOOD | {"id": "7", "question": "r"}, GOOD | {"id": 7})
    found = read(path, malformed="skip")
    assert [tuple(bad) for bad in found.reports[0].malformed_lines] == [
        (2, "duplicate id '7'"),
        (3, "the same trajectory as on an earlier line, whose id is '7'"),
    ]
    other = write(tmp_path / "b", first)
    assert len(read(other, other).trajectories) == 2  # of two agents, say


def test_zipped_files_are_read_and_a_cut_off_one_is_refused(tmp_path):
    lines = [json.dumps(GOOD | {"question": str(i)}) for i in range(500)]
    zipped = gzip.compress("\n".join(lines).encode())
    (tmp_path / "a.gz").write_bytes(zipped)
    assert len(read(tmp_path / "a.gz").trajectories) == 500
    (tmp_path / "b.gz").write_bytes(zipped[:-20])
    with pytest.raises(ValueError, match=r"b.gz: damaged after line \d+"):
        read(tmp_path / "b.gz", malformed="skip")


def test_step_traces_follow_the_settings_of_the_buffer(tmp_path):
    step = {"key": "k", "value": STEPS[2], "reward": 1}
    found = read(write(tmp_path / "a", step, step | {"value": STEPS[0]}))
    kept = found.usable_step_traces(unit="step", include_answers=False)
    assert [step_trace.value for step_trace in kept] == [STEPS[0]]
    assert len(found.usable_step_traces(unit="step", include_answers=True)) == 2
    with pytest.raises(ValueError, match="retrieval.unit='trajectory': buffer.files hold 2 single"):
        found.usable_step_traces(unit="trajectory", include_answers=True)


def test_the_manifest_counts_the_lines_of_each_file_by_its_name_alone(tmp_path):
    files = [write(tmp_path / "a", GOOD, "{"), write(tmp_path / "b", GOOD)]
    info = read(*files, malformed="skip").info()
    assert info["malformed"] == 1
    first, second = info["files"]
    ((number, problem),) = first.pop("malformed_lines")
    assert number == 2 and problem.startswith("not JSON")
    assert first == {"name": "a", "lines": 2, "records": 1, "malformed": 1}
    assert second["malformed_lines"] == []
    assert json.loads(json.dumps(info)) == info


values = st.one_of(st.none(), st.integers(), st.text(max_size=8), st.just(RESPONSE), st.just(STEPS))
names = "key value reward question response steps messages answers id question_id origin".split()


@given(st.lists(st.dictionaries(st.sampled_from(names), values), min_size=1, max_size=6))
def test_any_record_is_used_or_counted(tmp_path_factory, records):
    path = write(tmp_path_factory.mktemp("any") / "a", GOOD, *records)
    found = read(path, malformed="skip")
    (report,) = found.reports
    assert report.lines == len(records) + 1
    assert (
        len(found.trajectories) + len(found.step_traces)
        == report.records
        == report.lines - report.malformed
    )


@pytest.mark.parametrize("name", ["response", "steps", "value"])
def test_steps_whose_thought_is_only_closed_are_opened(tmp_path, name):
    text = "hm</think><answer>\\boxed{7}</answer>"
    record = {"question": "q", "answer": "7", name: [text] if name == "steps" else text}
    if name == "value":
        record = {"key": "q\n<think>", "value": text, "reward": 1.0}
    got = read(write(tmp_path / "a.jsonl", record))
    if name == "value":
        assert [trace.value for trace in got.step_traces] == [f"<think>{text}"]
    else:
        assert [(t.steps, t.reward) for t in got.trajectories] == [([f"<think>{text}"], 1.0)]


def test_the_same_contents_under_another_id_are_called_so(tmp_path):
    record = {"question": "q", "response": "<think>so</think>", "reward": 1}
    path = write(tmp_path / "a.jsonl", record | {"id": 1}, record | {"id": 2}, record | {"id": 2})
    (report,) = read(path, malformed="skip").reports
    assert [bad.problem for bad in report.malformed_lines] == [
        "the same trajectory as on an earlier line, whose id is 1", "duplicate id 2",
    ]  # fmt: skip


@given(
    st.lists(st.sampled_from(["<|a|>", "<|im_end|>", " ", "\n", "x", "<|", "|>", "|", "<", ">"]))
)
def test_the_tokens_at_the_end_of_a_turn_are_left_out(parts):
    text = "".join(parts)
    assert sources._without_end_tokens(text) == re.sub(r"(?:\s*<\|[^|>]*\|>)+\s*$", "", text)


@pytest.mark.parametrize("name", ["response", "steps", "value"])
def test_the_end_of_a_turn_is_left_out_of_each_form_of_a_record(tmp_path, name):
    text = "<think>so</think><answer>\\boxed{7}</answer>"
    record = {"question": "q", "answer": "7", name: text + " <|im_end|>\n"}
    if name == "steps":
        record["steps"] = [text, "<|im_end|>"]
    if name == "value":
        record = {"key": "q\n<think>", "value": record["value"], "reward": 1.0}
    got = read(write(tmp_path / "a.jsonl", record))
    if name == "value":
        assert [trace.value for trace in got.step_traces] == [text]
    else:
        assert [(t.steps, t.reward) for t in got.trajectories] == [([text], 1.0)]


def test_white_space_and_tokens_without_end_are_read_once(tmp_path):
    """The regular expression above would take hours."""
    for text in (" " * 4_000_000 + "x", "<|a|>" * 1_000_000 + "x", "<|a|>" * 1_000_000):
        assert len(sources._without_end_tokens(text)) in (0, len(text))

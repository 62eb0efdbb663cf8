"""Files that fill the buffer, alone and beside agents, and what is refused of them."""

from __future__ import annotations

import json

import pytest

from rapo_jax.stages.buffer import build_buffer
from rapo_jax.train.buffer import attach_buffer, load_buffer, read_trajectories

TRACE = "<think>look</think><search>a b</search><result>c</result>"
ANSWER = "<think>so</think><answer>\\boxed{c}</answer>"


def write_lines(path, *records):
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return str(path)


def made_traces(path):
    """Two trajectories of one question, the worse one first, and a line that says nothing."""
    trajectory = {"question": "what is b of a?", "response": TRACE + ANSWER}
    return write_lines(
        path,
        trajectory | {"answers": ["d"], "origin": "weak"},
        {"note": "no trace"},
        trajectory | {"answers": ["c"], "response": TRACE * 2 + ANSWER, "origin": "strong"},
    )


def official(path):
    return write_lines(path, {"key": "what is b of a?", "value": TRACE, "reward": 1.0})


def test_files_alone_can_fill_the_buffer(branch, tmp_path, trunk, capsys):
    files = (made_traces(tmp_path / "own.jsonl"), official(tmp_path / "official.jsonl"))
    run = branch(
        {"buffer.folder": str(tmp_path / "b"), "buffer.agent": "none", "buffer.files": files}
    )
    manifest = build_buffer(run)
    assert manifest["traces_by_origin"] == {"strong": 3, "file:official.jsonl": 1}  # keep = 1
    assert manifest["trajectories_kept_by_origin"] == {"strong": 1}
    assert (manifest["trajectories_sampled"], manifest["malformed"]) == (2, 1)
    first, second = manifest["files"]
    assert (first["name"], first["lines"], first["records"]) == ("own.jsonl", 3, 2)
    assert first["malformed_lines"][0][0] == 2
    assert (second["name"], second["malformed"]) == ("official.jsonl", 0)
    printed = capsys.readouterr().out
    assert "[buffer] 3 step traces of 1 trajectories kept of 2; mean reward " in printed
    assert "; 1 single step traces of files; mean reward 1.000; " in printed
    assert "own.jsonl: 2 records of 3 lines, 1 malformed (line 2: none of key, " in printed
    assert [trace.origin for trace in read_trajectories(run)] == ["strong"]
    assert attach_buffer(run).step_traces[-1].value == TRACE
    attach_buffer(trunk)


def test_files_stand_beside_the_agents_traces(branch, tmp_path, trunk):
    files = (made_traces(tmp_path / "own.jsonl"),)
    run = branch({"buffer.folder": str(tmp_path / "b"), "buffer.files": files})
    found, alone = build_buffer(run), load_buffer(trunk).manifest
    assert found["traces_by_origin"] == alone["traces_by_origin"] | {"strong": 3}
    assert "files" not in alone and "malformed" not in alone


def test_a_malformed_line_can_be_fatal_before_anything_is_sampled(branch, tmp_path, capsys):
    files = (made_traces(tmp_path / "own.jsonl"),)
    changes = {"buffer.files": files, "buffer.malformed": "fail"}
    with pytest.raises(ValueError, match="own.jsonl, line 2: .*set buffer.malformed='skip'"):
        build_buffer(branch(changes | {"buffer.folder": str(tmp_path / "b")}))
    assert "trajectories by" not in capsys.readouterr().out


def test_single_step_traces_are_no_trajectories(branch, tmp_path):
    changes = {
        "buffer.folder": str(tmp_path / "b"),
        "buffer.agent": "none",
        "buffer.files": (official(tmp_path / "official.jsonl"),),
    }
    with pytest.raises(ValueError, match="retrieval.unit='trajectory': buffer.files hold 1 single"):
        build_buffer(branch(changes | {"retrieval.unit": "trajectory"}))
    run = branch(changes)
    assert build_buffer(run)["traces"] == 1
    with pytest.raises(ValueError, match="the buffer holds single step traces alone, and imita"):
        read_trajectories(run)


def test_a_finished_buffer_of_other_files_is_refused(branch, tmp_path):
    changes = {"buffer.folder": str(tmp_path / "b"), "buffer.agent": "none"}
    build_buffer(branch(changes | {"buffer.files": (made_traces(tmp_path / "own.jsonl"),)}))
    other = branch(changes | {"buffer.files": (official(tmp_path / "official.jsonl"),)})
    with pytest.raises(ValueError, match="buffer.files=.*official.*was built with .'own.jsonl'"):
        build_buffer(other)
    assert load_buffer(branch({"buffer.folder": str(tmp_path / "b")})).manifest["traces"] == 3


def test_traces_are_scored_by_the_metric_of_the_task(branch, tmp_path):
    half = {"question": "half?", "steps": ["<think>so</think><answer>\\boxed{1/2}</answer>"]}
    changes = {
        "buffer.agent": "none",
        "buffer.files": (write_lines(tmp_path / "a", half | {"answers": ["0.5"]}),),
    }
    rewards = {
        metric: build_buffer(
            branch(
                changes | {"task.metric": metric, "buffer.folder": str(tmp_path / metric)},
                name=f"run_{metric}",
            )
        )["mean_reward_kept"]
        for metric in ("f1", "math")
    }
    assert rewards == {"f1": 0.0, "math": 1.0}

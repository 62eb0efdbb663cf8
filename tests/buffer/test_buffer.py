"""A Step-Trace Buffer: its manifest and identity, and what is refused when it is read back."""

from __future__ import annotations

import dataclasses
import json
import shutil

import numpy as np
import pytest

from rapo_jax.buffer.buffer import StepTraceBuffer, _identity, _lines
from rapo_jax.buffer.trajectories import AgentTrajectory, Splitting, split_all
from rapo_jax.search.ngram import NgramEncoder

TRAJECTORIES = [
    AgentTrajectory(
        "q0", "where?", ["<search>a</search>", "<answer>\\boxed{b}</answer>"], 1.0, "expert"
    ),
    AgentTrajectory("q0", "where?", ["<search>c</search>"], -1.0, "policy"),
    AgentTrajectory("q1", "who?", ["<search>d</search>", "<python>e</python>"], 0.5, "policy"),
]
ENCODER = NgramEncoder.fit(["where? who? <search>a</search>"], width=16, orders=(1,))


def build(trajectories=TRAJECTORIES, *, encode=ENCODER, unit="step", include_answers=True, info=()):
    how = Splitting(unit, include_answers, mask="", max_chars=100)
    return StepTraceBuffer.build(
        split_all(trajectories, how),
        how,
        encode=encode,
        encoder_identity=ENCODER.identity,
        tokenizer_fingerprint="tok",
        count_tokens=len,
        info=dict(info),
    )


def load(folder, *, encoder=ENCODER.identity, tokenizer="tok"):
    return StepTraceBuffer.load(folder, encoder_identity=encoder, tokenizer_fingerprint=tokenizer)


def test_the_manifest_counts_what_is_stored_and_holds_how_it_was_made():
    buffer = build(info={"keep": 1})
    values = [step for trajectory in TRAJECTORIES for step in trajectory.steps]
    assert [step_trace.value for step_trace in buffer.step_traces] == values
    expected = {
        "questions": 2,
        "traces": 5,
        "traces_by_origin": {"expert": 2, "policy": 3},
        "tokens": sum(map(len, values)),
        "encoder": ENCODER.identity,
        "tokenizer": "tok",
        "unit": "step",
        "include_answers": True,
        "keep": 1,
        "mask": "",
        "max_chars": 100,
    }
    assert {name: buffer.manifest[name] for name in expected} == expected


def test_keys_are_embedded_in_the_order_of_the_step_traces():
    buffer = build()
    keys = [step_trace.key for step_trace in buffer.step_traces]
    np.testing.assert_array_equal(buffer.key_ME, ENCODER(keys))


def test_the_identity_is_the_same_for_the_same_contents_and_differs_for_others():
    others = [build(info={"keep": 2}), build(unit="trajectory"), build(include_answers=False)]
    changed = [TRAJECTORIES[0]._replace(question="when?"), *TRAJECTORIES[1:]]
    identities = [buffer.identity for buffer in (build(), *others, build(changed))]
    identities.append(build(encode=lambda texts: -ENCODER(texts)).identity)
    assert build().identity == identities[0]
    assert len(set(identities)) == 6


def test_save_and_load_give_the_same_buffer_and_leave_nothing_else(tmp_path):
    buffer = build()
    buffer.save(tmp_path / "deep" / "buffer")
    loaded = load(tmp_path / "deep" / "buffer")
    assert loaded.step_traces == buffer.step_traces and loaded.manifest == buffer.manifest
    np.testing.assert_array_equal(loaded.key_ME, buffer.key_ME)
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["buffer"]


def test_line_separators_inside_a_trace_survive(tmp_path):
    odd = AgentTrajectory("q", "a\u2028b", ["x\n\r\x85\u2029\x1c y"], 1.0, "é")
    build([odd]).save(tmp_path / "b")
    assert load(tmp_path / "b").step_traces[0].value == odd.steps[0]


def test_saving_over_an_older_buffer_replaces_it(tmp_path):
    build().save(tmp_path / "b")
    build(info={"keep": 2}).save(tmp_path / "b")
    assert load(tmp_path / "b").manifest["keep"] == 2
    assert [path.name for path in tmp_path.iterdir()] == ["b"]


def test_a_failed_save_keeps_the_older_buffer_and_no_rest(tmp_path):
    build().save(tmp_path / "b")
    good = build(info={"keep": 2})
    broken = StepTraceBuffer(good.step_traces, good.key_ME, {**good.manifest, "odd": object()})
    with pytest.raises(TypeError):
        broken.save(tmp_path / "b")
    assert "keep" not in load(tmp_path / "b").manifest
    assert [path.name for path in tmp_path.iterdir()] == ["b"]


@pytest.mark.parametrize("name", ["encoder", "tokenizer"])
def test_a_buffer_of_another_encoder_or_tokenizer_is_refused(tmp_path, name):
    build().save(tmp_path / "b")
    with pytest.raises(ValueError, match=f"{name}='.*', but this run has 'other'.*build"):
        load(tmp_path / "b", **{name: "other"})


def test_a_missing_folder_is_refused_with_the_way_to_make_one(tmp_path):
    with pytest.raises(ValueError, match="missing; run the buffer stage"):
        load(tmp_path / "nowhere")


@pytest.mark.parametrize("name", ["items.jsonl", "keys.npy", "manifest.json"])
def test_a_cut_off_or_missing_file_is_refused(tmp_path, name):
    build().save(tmp_path / "b")
    path = tmp_path / "b" / name
    whole = path.read_bytes()
    for kept in (0, 1, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:kept])
        with pytest.raises(ValueError, match="buffer .*build it again"):
            load(tmp_path / "b")
    path.unlink()
    with pytest.raises(ValueError, match="missing"):
        load(tmp_path / "b")


def test_an_edited_trace_or_manifest_is_refused(tmp_path):
    for name, old, new in (
        ("items.jsonl", b"where?", b"there?"),
        ("manifest.json", b'"traces": 5', b'"traces": 6'),
    ):
        build().save(tmp_path / "b")
        path = tmp_path / "b" / name
        assert old in path.read_bytes()
        path.write_bytes(path.read_bytes().replace(old, new))
        with pytest.raises(ValueError, match="do not match the manifest"):
            load(tmp_path / "b")
        shutil.rmtree(tmp_path / "b")


@pytest.mark.parametrize(
    ("keys", "reason"),
    [
        (np.full((5, 4), np.nan, np.float32), "numbers that are not finite"),
        (np.ones((4, 4), np.float32), r"shape \(4, 4\) for 5 step traces"),
        (np.ones(5, np.float32), r"shape \(5,\) for 5 step traces"),
    ],
)
def test_keys_that_cannot_be_searched_are_refused_also_with_an_identity_of_their_own(
    tmp_path, keys, reason
):
    made = build()
    wrong = dataclasses.replace(made, key_ME=keys)
    manifest = wrong.manifest | {
        "identity": _identity(_lines(wrong.step_traces), keys, wrong.manifest)
    }
    dataclasses.replace(wrong, manifest=manifest).save(tmp_path / "b")
    with pytest.raises(ValueError, match=f"keys.npy has {reason}; build it again"):
        load(tmp_path / "b")


def test_another_format_and_a_manifest_that_is_no_object_are_refused(tmp_path):
    build().save(tmp_path / "b")
    path = tmp_path / "b" / "manifest.json"
    path.write_text(json.dumps({**build().manifest, "format": 0}))
    with pytest.raises(ValueError, match="format=0"):
        load(tmp_path / "b")
    path.write_text("[]")
    with pytest.raises(ValueError, match="unreadable"):
        load(tmp_path / "b")


@pytest.mark.parametrize("trajectories", [[], [AgentTrajectory("q", "who?", [], 1.0, "expert")]])
def test_a_buffer_without_a_step_trace_is_not_built(trajectories):
    with pytest.raises(ValueError, match="no step traces"):
        build(trajectories)


def test_an_encoder_that_gives_nan_or_too_few_rows_is_refused():
    with pytest.raises(ValueError, match="not finite"):
        build(encode=lambda texts: np.full((len(texts), 4), np.nan, np.float32))
    with pytest.raises(ValueError, match="gave shape \\(1, 4\\) for 5 step traces"):
        build(encode=lambda texts: np.ones((1, 4), np.float32))

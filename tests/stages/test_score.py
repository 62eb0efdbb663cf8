"""Stage score: the numbers of transformers for every row, in order; bad lines by their number."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rapo_jax.run.policy import newest_weights
from rapo_jax.run.weights import restore
from rapo_jax.stages.score import batches, bucket_width, read_rows, score_file
from tests.model.checkpoints import (
    VOCAB,
    load_model,
    logits_of,
    logp_and_entropy,
    make_model,
    save_model,
)

LENGTHS = (5, 1, 40, 17, 2, 16, 1, 90, 33)
ROWS = [np.random.default_rng(n).integers(0, VOCAB, n).tolist() for n in LENGTHS]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("model")
    return save_model(make_model("qwen3_tied", std=0.05), path, dtype=torch.bfloat16)


@pytest.fixture
def settings_of(folder, tmp_path, small_settings):
    """Settings of stage score on a written input; rows are lists of tokens or text of a line."""

    def make(rows, **changes):
        lines = [row if isinstance(row, str) else json.dumps({"tokens": row}) for row in rows]
        (tmp_path / "in.jsonl").write_text("".join(line + "\n" for line in lines))
        keys = {
            "model.folder": str(folder),
            "score.input": str(tmp_path / "in.jsonl"),
            "score.output": str(tmp_path / "made" / "out.jsonl"),
        }
        return small_settings(keys | {k.replace("__", "."): v for k, v in changes.items()})

    return make


def scored(settings, workdir, devices=1):
    score_file(settings, workdir, devices=jax.devices()[:devices])
    with open(settings.score.output) as file:
        found = [json.loads(line) for line in file]
    assert all(row.keys() == {"logp", "entropy"} for row in found)
    return [(row["logp"], row["entropy"]) for row in found]


def apart(left, right):
    pairs = zip(left, right, strict=True)
    return max(np.abs(np.subtract(a, b)).max(initial=0) for a, b in pairs)


@pytest.mark.parametrize(("dtype", "bound"), [("float32", 1e-4), ("bfloat16", 3e-2)])
def test_every_row_gets_the_numbers_of_transformers_in_its_place(
    folder, settings_of, dtype, bound, tmp_path, capsys
):
    model = load_model(folder, dtype=getattr(torch, dtype))
    found = scored(settings_of(ROWS, model__dtype=dtype), tmp_path / "work")
    for row, both in zip(ROWS, found, strict=True):
        assert len(both[0]) == len(both[1]) == len(row) - 1
        theirs = logp_and_entropy(logits_of(model, [row]), [row])
        assert apart(both, [x[0] for x in theirs]) < bound
    assert not (tmp_path / "work").exists()  # nothing of a run was opened
    assert f"[score] {len(ROWS)}/{len(ROWS)}" in capsys.readouterr().out


def test_neither_batches_nor_devices_nor_neighbours_change_a_score(settings_of, tmp_path):
    whole = scored(settings_of(ROWS), tmp_path)
    for rows, devices, changes in (
        (ROWS, 1, {"score__batch_tokens": 1}),
        (ROWS, 8, {"score__batch_tokens": 64}),
        (ROWS[::-1], 1, {"model__score_logits": 7000}),
    ):
        found = scored(settings_of(rows, **changes), tmp_path, devices)
        found = found if rows is ROWS else found[::-1]
        assert (
            apart([x for both in found for x in both], [x for both in whole for x in both]) < 1e-5
        )


def test_rows_of_one_token_give_empty_lists(settings_of, tmp_path):
    assert scored(settings_of([[3], [5]]), tmp_path) == [([], []), ([], [])]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("", r"line 2 of .*in\.jsonl is not a JSON object such as .*: ''"),
        ('{"tokens": [1, 2', r"line 2 of .* is not a JSON object"),
        ("[1, 2]", r"line 2 of .* is not a JSON object such as \{\"tokens\": \[1, 2, 3\]\}: '\[1"),
        ('{"text": "a"}', r"line 2 of .* is not a JSON object"),
        ('{"tokens": "12"}', r"line 2 of .* is not a JSON object"),
        ('{"tokens": [1, 2.0]}', r"line 2 of .* is not a JSON object"),
        ('{"tokens": [1, true]}', r"line 2 of .* is not a JSON object"),
        ('{"tokens": []}', r"line 2 of .* has no tokens"),
        ('{"tokens": [1, 97]}', r"line 2 of .* has token 97, the model's vocabulary is 0 … 96"),
        ('{"tokens": [-1, 1]}', r"line 2 of .* has token -1"),
    ],
)
def test_a_line_that_is_no_row_is_refused_by_its_number(settings_of, tmp_path, line, message):
    settings = settings_of([[1, 2], line, [3, 4]])
    with pytest.raises(ValueError, match=rf"^score\.input: {message}"):
        score_file(settings, tmp_path)
    assert not (tmp_path / "made").exists()


def test_further_keys_of_a_row_are_ignored_and_no_text_at_all_is_refused(tmp_path):
    path = tmp_path / "in.jsonl"
    path.write_text('{"id": 3, "tokens": [4, 5]}')  # no newline at the end either
    assert [row.tolist() for row in read_rows(path, vocab=6)] == [[4, 5]]
    path.write_bytes(b"\xff\xfe\n")
    with pytest.raises(ValueError, match="line 1 of"):
        read_rows(path, vocab=6)
    path.write_text("")
    with pytest.raises(ValueError, match=r"score\.input=.*the file is empty"):
        read_rows(path, vocab=6)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"score__input": ""}, r"score\.input='': no such file; it holds JSON lines"),
        ({"score__input": "/nowhere"}, r"score\.input='/nowhere': no such file"),
        ({"score__output": ""}, r"score\.output='': name a file"),
        ({"score__output": "/"}, r"score\.output='/': name a file"),
        ({"score__output": "/proc/no/o"}, r"score\.output='/proc/no/o': cannot be written"),
        ({"model__folder": ""}, r"model\.folder='': there are no weights, and no checkpoint"),
        ({"model__folder": "/nowhere"}, r"model\.folder='/nowhere': there is no config\.json"),
    ],
)
def test_what_is_missing_is_refused_by_its_key(settings_of, tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        score_file(settings_of([[1, 2]], **changes), tmp_path)


@pytest.mark.parametrize("name", ["in.jsonl", "folder/../in.jsonl"])
def test_the_input_is_never_overwritten(settings_of, tmp_path, name):
    (tmp_path / "folder").mkdir()
    settings = settings_of([[1, 2]], score__output=str(tmp_path / name))
    with pytest.raises(ValueError, match=r"score\.output=.*it is score\.input"):
        score_file(settings, tmp_path)


def test_a_trained_policy_comes_before_the_folder_it_started_from(trunk, small_settings, tmp_path):
    changes = {"model.folder": "", "sft.folder": str(trunk.cold_start)}
    weights = newest_weights(small_settings(changes), tmp_path)
    assert weights.origin == trunk.cold_start
    assert weights.model.vocab == len(trunk.tokens.bytes_V)
    loaded = weights.load(trunk.mesh, dtype="float32")
    jax.tree.map(np.testing.assert_array_equal, loaded, restore(trunk.cold_start).params)
    other = small_settings(changes | {"model.tied": True})
    with pytest.raises(ValueError, match=r"parameter \['head_DV'\] is not part of config\.model"):
        newest_weights(other, tmp_path)


@given(st.lists(st.integers(1, 300), max_size=30), st.integers(1, 600), st.sampled_from([1, 2, 8]))
def test_batches_hold_every_row_once_within_their_width_and_budget(lengths, budget, multiple):
    made = list(batches(lengths, batch_tokens=budget, multiple=multiple))
    members = [row for batch in made for row in batch.members]
    assert sorted(members) == [row for row, length in enumerate(lengths) if length > 1]
    for batch in made:
        assert 0 < len(batch.members) <= batch.rows and batch.rows % multiple == 0
        assert max(lengths[row] for row in batch.members) <= batch.width
        assert (batch.rows - multiple) * batch.width < budget
    shapes = {(batch.rows, batch.width) for batch in made}
    assert len(shapes) == len({batch.width for batch in made})


def test_widths_are_few_and_waste_less_than_a_third():
    widths = [bucket_width(length) for length in range(1, 5000)]
    assert len(set(widths)) == 18 and widths == sorted(widths)
    assert widths[0] == 16
    assert all(2 * width <= 3 * length for length, width in enumerate(widths, 1) if length > 16)


def command(folder, tmp_path, *flags):
    """The program as it is called, on top of a config of another model's shape."""
    (tmp_path / "in.jsonl").write_text(json.dumps({"tokens": ROWS[0]}) + "\n")
    arguments = [
        *("--config=configs/tiny.py", f"--workdir={tmp_path / 'work'}"),
        *("--config.stages=('score',)", f"--config.model.folder={folder}"),
        *(f"--config.score.input={tmp_path / 'in.jsonl'}", *flags),
        f"--config.score.output={tmp_path / 'out.jsonl'}",
    ]
    return subprocess.run(
        [sys.executable, "-m", "rapo_jax.main", *arguments],
        cwd=Path(__file__).parents[2],
        env=os.environ | {"XLA_FLAGS": ""},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )


def test_the_command_scores_again_and_again_in_one_workdir(folder, tmp_path):
    for dtype in ("float32", "bfloat16"):
        done = command(folder, tmp_path, f"--config.model.dtype={dtype}", "--config.model.width=32")
        assert done.returncode == 0, done.stderr[-2000:]
        assert "ETA" in done.stdout and "skipped" not in done.stdout
        (row,) = map(json.loads, (tmp_path / "out.jsonl").read_text().splitlines())
        model = load_model(folder, dtype=getattr(torch, dtype))
        (theirs,) = logp_and_entropy(logits_of(model, ROWS[:1]), ROWS[:1])[0]
        assert np.abs(row["logp"] - theirs).max() < (1e-4 if dtype == "float32" else 3e-2)
        assert not list((tmp_path / "work").iterdir())


def test_a_shape_given_as_a_flag_that_the_folder_denies_is_one_line(folder, tmp_path):
    done = command(folder, tmp_path, "--config.model.layers=7")
    assert done.returncode == 2 and not (tmp_path / "out.jsonl").exists()
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: model.layers=7: model.folder=")
    assert line.endswith("has 3 (num_hidden_layers in its config.json); leave model.layers out")

"""Which stages of a workdir are finished, which are left, and what a longer training takes back."""

from __future__ import annotations

import json

import pytest

from rapo_jax.config.read import read_settings
from rapo_jax.stages.job import (
    HELD_OUT,
    _stages_left,
    finished,
    note_finished,
    prepare_workdir,
    raise_steps,
    run_stages,
)


def test_evaluation_is_finished_with_its_suites_and_its_held_out_part_runs_once(
    tmp_path, small_settings
):
    settings = small_settings({"evaluate.suites": ("gsm8k",), "stages": ("rl", "evaluate")})
    note_finished(tmp_path, "rl")
    assert _stages_left(settings, tmp_path, ["rl", "evaluate"]) == (["evaluate"], True)
    note_finished(tmp_path, HELD_OUT)  # as where the suites fail after it
    assert _stages_left(settings, tmp_path, ["rl", "evaluate"]) == ([], True)
    assert finished(tmp_path) == ["rl", HELD_OUT]


def test_suites_that_failed_and_are_then_left_out_leave_the_evaluation_finished(
    tmp_path, small_settings, capsys
):
    for stage in ("rl", HELD_OUT):
        note_finished(tmp_path, stage)
    run_stages(small_settings({"stages": ("rl", "evaluate")}), tmp_path, fresh=False)
    assert "[evaluate] finished before; skipped" in capsys.readouterr().out
    assert finished(tmp_path) == ["rl", "evaluate"]


@pytest.mark.parametrize("there", ["metrics.jsonl", "done.json", "checkpoints", "suites"])
def test_results_whose_config_is_lost_are_not_continued_with_another(tmp_path, small_config, there):
    (tmp_path / there).mkdir()
    with pytest.raises(ValueError, match=rf"its config.json is missing, .* {there} were made; "):
        prepare_workdir(tmp_path, small_config())
    assert not (tmp_path / "config.json").exists()
    assert not prepare_workdir(tmp_path, small_config({"stages": ("plan",)}))  # it only reads


def test_more_rl_steps_are_recorded_and_the_stages_from_rl_on_run_again(
    tmp_path, small_config, capsys
):
    prepare_workdir(tmp_path, small_config())
    stages = ["sft", "buffer", "rl", "evaluate", "report"]
    (tmp_path / "done.json").write_text(json.dumps({"stages": stages}))
    (tmp_path / "suites").mkdir()
    result = {"accuracy_before": 0.25, "accuracy_after": 0.5, "hidden_after": 0.5, "start": "x"}
    (tmp_path / "result.json").write_text(json.dumps(result))
    changes = {"rl.steps": 5, "optimizer.schedule": "cosine", "retrieval.schedule": "linear"}
    raise_steps(read_settings(small_config({"rl.steps": 5, "stages": ("export",)})), tmp_path)
    assert capsys.readouterr().out == ""
    raise_steps(read_settings(small_config(changes)), tmp_path)
    assert capsys.readouterr().out == (
        "[config] rl.steps grows from 2 to 5; optimizer.schedule='cosine' and "
        "retrieval.schedule='linear' now decay over 5 steps, from the last checkpoint on\n"
    )
    assert finished(tmp_path) == ["sft", "buffer"]
    assert json.loads((tmp_path / "config.json").read_text())["rl"]["steps"] == 5
    result = json.loads((tmp_path / "result.json").read_text())
    assert result == {"accuracy_before": 0.25, "start": "x"}
    assert (tmp_path / "suites-2").is_dir() and not (tmp_path / "suites").exists()
    raise_steps(read_settings(small_config(changes)), tmp_path)
    assert capsys.readouterr().out == ""


def test_an_evaluation_before_the_training_has_ended_is_made_again_after_it(
    tmp_path, small_settings
):
    settings = small_settings({"stages": ("sft", "rl", "evaluate")})
    note_finished(tmp_path, "sft")
    note_finished(tmp_path, "evaluate")  # by a call for that stage alone
    asked = ["sft", "rl", "evaluate"]
    assert _stages_left(settings, tmp_path, ["evaluate"]) == ([], False)
    assert _stages_left(settings, tmp_path, asked) == (["rl", "evaluate"], False)
    note_finished(tmp_path, "rl")  # a kill comes before the evaluation
    assert _stages_left(settings, tmp_path, asked) == (["evaluate"], False)
    note_finished(tmp_path, "evaluate")
    assert _stages_left(settings, tmp_path, asked) == ([], False)


@pytest.mark.parametrize("written", [None, "metrics.jsonl", "suites"])
def test_a_first_stage_that_refuses_its_input_leaves_the_workdir_to_another_config(
    tmp_path, small_config, written
):
    folder = tmp_path / "no_checkpoint"
    folder.mkdir()
    changes = {"rollout.questions": 8, "stages": ("buffer",), "buffer.agent": "checkpoint"}
    config = small_config(changes | {"buffer.checkpoint": str(folder)})
    fresh = prepare_workdir(tmp_path, config)
    if written:
        (tmp_path / written).mkdir()  # results of this config, of whatever stage
    with pytest.raises((ValueError, FileNotFoundError), match="no_checkpoint"):
        run_stages(read_settings(config), tmp_path, fresh=fresh)
    assert (tmp_path / "config.json").exists() == bool(written)
    assert (tmp_path / "coldstart" / "tokenizer").exists() == bool(written)

"""The stage `evaluate`: which weights it compares."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from rapo_jax.stages import table


@pytest.fixture
def evaluated(tmp_path, monkeypatch):
    """Evaluates a run of the model in a folder; returns the result and what was loaded."""
    loaded = []

    def load(run, folder):
        loaded.append(folder)

    scores = {"accuracy": 0.5, "reward": 0.4, "accuracy_by_kind": {}, "questions": 4}
    monkeypatch.setattr(table, "load_questions", lambda source: [])
    monkeypatch.setattr(table, "load_policy", load)
    monkeypatch.setattr(table, "evaluate", lambda run, params, questions: scores)
    ignore = SimpleNamespace(cut_back=lambda *_: None, write=lambda *_: None)
    run = SimpleNamespace(
        settings=SimpleNamespace(evaluate=SimpleNamespace(limit=0), rl=SimpleNamespace(steps=2)),
        questions={"eval": None},
        model=SimpleNamespace(folder="model"),
        workdir=tmp_path,
        cold_start=tmp_path / "coldstart",
        metrics=ignore,
    )
    job = SimpleNamespace(run=run, result={})

    def evaluate():
        table.JOB_STAGES["evaluate"](job)
        return job.result, [folder.name for folder in loaded]

    return evaluate


def test_a_training_that_saved_no_checkpoint_leaves_the_weights_of_the_folder_alone(
    evaluated, tmp_path
):
    for folder in (tmp_path, tmp_path / "coldstart"):
        (folder / "checkpoints").mkdir(parents=True)  # made before the first is written
    result, loaded = evaluated()
    assert loaded == ["coldstart"]  # in its place, those of model.folder
    assert result["start"] == "before training"
    assert result["accuracy_before"] == 0.5 and "accuracy_after" not in result

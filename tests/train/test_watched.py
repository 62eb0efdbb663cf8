"""What a training writes on the way: samples of held-out questions, and exports."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace

import jax

from rapo_jax.config import ExportSettings
from rapo_jax.stages.export import export_weights
from rapo_jax.train.rl import train_rl

WATCHED = {
    "evaluate.every": 1,
    "evaluate.limit": 4,
    "log.samples_every": 2,
    "checkpoint.export_every": 2,
}


def files_of(folder):
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def test_samples_and_exports_are_written_on_the_way_and_those_a_kill_cut_short_after_a_resume(
    branch, tmp_path
):
    first = branch(WATCHED | {"rl.steps": 2})
    train_rl(first)
    exports = first.workdir / "exports"
    complete = files_of(exports / "2")
    shutil.rmtree(exports / "2")  # killed after the checkpoint of step 2, during its export
    (exports / "2.tmp").mkdir()
    (exports / "2.tmp" / "config.json").write_text("{")
    run = branch(WATCHED)
    train_rl(run)
    assert sorted(path.name for path in exports.iterdir()) == ["2", "4"]
    assert files_of(exports / "2") == complete
    samples = (run.workdir / "samples.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in samples] == [0] * 4 + [2] * 4 + [4] * 4
    settings = replace(run.settings, export=ExportSettings(folder=str(tmp_path / "exported")))
    export_weights(settings, run.workdir, devices=jax.devices()[:1])
    assert files_of(tmp_path / "exported") == files_of(exports / "4")

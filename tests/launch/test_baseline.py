"""launch/sweep.py: the variant that the others are compared with, and what a dry run shows."""

from __future__ import annotations

import json

import pytest

from tests.launch.sweeps import flags_of, refusal, sweep

RUNS = ("--sweep=seed=0,1", "--run=method=rapo", "--run=method=rapo,rl.m=0")


@pytest.mark.parametrize("dry", [(), ("--dry-run",)])
def test_a_baseline_that_is_no_variant_is_refused_before_the_first_run(
    tmp_path, program, capsys, dry
):
    folder = tmp_path / "w"
    flags = flags_of(folder, *RUNS, "--baseline=grop", *dry)
    (line,) = refusal(lambda: sweep.main(flags, program), capsys).splitlines()
    assert line.startswith("error: --baseline=grop: no variant of this sweep is called that; give")
    assert line.endswith("one of 'rapo', 'rapo · rl.m=0.0'")
    assert not folder.exists()
    assert sweep.main(flags_of(folder, *RUNS, "--baseline=rapo · rl.m=0.0", "--dry-run")) == 0


def test_the_others_are_compared_with_the_baseline_that_was_named(tmp_path, program):
    folder = tmp_path / "w"
    flags = flags_of(folder, "--sweep=method=grpo,rapo", "--baseline=rapo")
    assert sweep.main(flags, program) == 0
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["baseline"] == "rapo"
    grpo, rapo = summary["variants"]
    assert grpo["difference"][0] == pytest.approx(grpo["accuracy"] - rapo["accuracy"])
    assert "difference to rapo" in (folder / "summary.md").read_text().lower()


def test_a_dry_run_says_which_runs_are_finished(tmp_path, program, capsys):
    flags = flags_of(tmp_path / "w", "--sweep=seed=0,1")
    done = tmp_path / "w" / "seed=1" / "done.json"
    done.parent.mkdir(parents=True)
    done.write_text(json.dumps({"stages": ["rl", "evaluate", "report"]}))
    assert sweep.main([*flags, "--dry-run"], program) == 0
    shared, *runs = capsys.readouterr().out.splitlines()
    assert [line.startswith("# finished: ") for line in (shared, *runs)] == [False, False, True]


def test_no_buffer_is_made_where_the_cold_start_that_it_reads_has_failed(tmp_path, program):
    folder = tmp_path / "w"
    flags = flags_of(folder, "--sweep=sft.steps=3,4", "--config.seed=7")
    assert sweep.main(flags, program) == 1
    order = (folder / "order").read_text().split()
    assert order == ["shared_sft.steps=3", "shared_sft.steps=4"]

"""launch/parts.py: which cold start and buffer the runs of a sweep share, by their configs."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.launch.sweeps import TINY, dry_run, sweep


def test_runs_share_cold_start_and_buffer_with_those_that_agree_in_what_these_depend_on(capsys):
    variants = ("method=grpo", "sft.steps=3", "buffer.keep=2", "buffer.keep=5,rl.m=0")
    runs = dry_run(capsys, TINY, *(f"--run={variant}" for variant in variants))
    cold_start, buffer = (
        {"sft.folder": "/w/shared/coldstart"},
        {"buffer.folder": "/w/shared/buffer"},
    )
    steps, keep = {"sft.steps": "3"}, {"buffer.keep": "2"}
    rl = {"stages": "('rl', 'evaluate', 'report')"}
    wanted = {
        "shared": {"stages": "('sft', 'buffer')"},
        "shared_sft.steps=3": {"stages": "('sft',)"} | steps,
        "shared_buffer.keep=2": {"stages": "('buffer',)"} | keep | cold_start,
        "grpo": {"method": "grpo"} | rl | cold_start | buffer,
        "sft.steps=3": {"sft.folder": "/w/shared_sft.steps=3/coldstart"} | steps | rl | buffer,
        "buffer.keep=2": {"buffer.folder": "/w/shared_buffer.keep=2/buffer"}
        | keep | rl | cold_start,
        # 5 is the value of the config
        "buffer.keep=5_rl.m=0": {"buffer.keep": "5", "rl.m": "0"} | rl | cold_start | buffer,
    }  # fmt: skip
    for name, flags in runs.items():
        where = {"--config": TINY.partition("=")[2], "--workdir": f"/w/{name}"}
        assert flags == wanted[name] | where
    assert list(runs) == list(wanted)


def test_methods_share_the_start_and_the_teacher_of_their_row_of_a_table(capsys):
    variants = ("sft.weak_habit=0.8", "buffer.expert_error=0.3")
    runs = dry_run(
        capsys, TINY, "--sweep=method=rapo,sft", "--sweep=seed=0,1", "--per-seed=buffer",
        "--run=buffer.keep=5", *(f"--run={each}" for each in (*variants, ",".join(variants))),
    )  # fmt: skip
    starts = [name for name, run in runs.items() if "'sft'" in run["stages"]]
    buffers = [name for name, run in runs.items() if "'buffer'" in run["stages"]]
    assert starts == ["shared", "shared_sft.weak_habit=0.8"]
    assert buffers == [
        "shared_seed=0", "shared_seed=1",
        "shared_buffer.expert_error=0.3_seed=0", "shared_buffer.expert_error=0.3_seed=1",
    ]  # fmt: skip
    assert len(runs) == 6 + 16
    run = runs["sft_sft.weak_habit=0.8_buffer.expert_error=0.3_seed=1"]
    assert run["sft.folder"] == "/w/shared_sft.weak_habit=0.8/coldstart"
    assert run["buffer.folder"] == "/w/shared_buffer.expert_error=0.3_seed=1/buffer"


def test_a_buffer_reads_the_tokenizer_of_a_cold_start_that_is_made_where_none_is_common(capsys):
    runs = dry_run(capsys, TINY, "--sweep=sft.steps=3,4")
    starts = ["shared_sft.steps=3", "shared_sft.steps=4"]
    assert list(runs) == [*starts, "shared", "sft.steps=3", "sft.steps=4"]
    assert runs["shared"]["stages"] == "('buffer',)"
    assert runs["shared"]["sft.folder"] == f"/w/{starts[0]}/coldstart"


def test_each_seed_makes_its_buffer_or_cold_start_and_buffer_where_the_sweep_says_so(capsys):
    flags = (TINY, "--sweep=method=grpo,rapo", "--sweep=seed=0,1")
    runs = dry_run(capsys, *flags, "--per-seed=buffer")
    assert list(runs)[:3] == ["shared", "shared_seed=0", "shared_seed=1"] and len(runs) == 7
    assert runs["shared"]["stages"] == "('sft',)"
    for seed in ("0", "1"):
        maker = runs[f"shared_seed={seed}"]
        assert maker["stages"] == "('buffer',)" and maker["seed"] == seed
        for run in (maker, runs[f"grpo_seed={seed}"], runs[f"rapo_seed={seed}"]):
            assert run["sft.folder"] == "/w/shared/coldstart"
        for method in ("grpo", "rapo"):
            run = runs[f"{method}_seed={seed}"]
            assert run["buffer.folder"] == f"/w/shared_seed={seed}/buffer"
    runs = dry_run(capsys, *flags, "--per-seed=both")
    assert list(runs)[:2] == ["shared_seed=0", "shared_seed=1"] and len(runs) == 6
    assert runs["shared_seed=1"]["stages"] == "('sft', 'buffer')"
    assert runs["rapo_seed=1"]["sft.folder"] == "/w/shared_seed=1/coldstart"


def test_buffers_of_seeds_are_made_from_the_cold_start_that_the_flags_name(capsys):
    flags = (TINY, "--config.sft.folder=/c", "--sweep=seed=0,1", "--per-seed=buffer")
    for run in dry_run(capsys, *flags).values():
        assert run["sft.folder"] == "/c"


def test_a_buffer_for_each_seed_is_refused_where_the_flags_name_one_for_all(capfd):
    with pytest.raises(SystemExit, match="^2$"):
        dry_run(capfd, TINY, "--config.buffer.folder=/b", "--sweep=seed=0,1", "--per-seed=buffer")
    error = "error: --per-seed=buffer: buffer.folder=/b is one for all seeds\n"
    assert capfd.readouterr().err == error


@pytest.mark.parametrize("changed", ["buffer.expert_error=0.7", "sft.weak_habit=0.8"])
def test_a_run_that_changes_what_the_flags_have_made_already_is_refused(capfd, changed):
    part = changed.partition(".")[0]
    with pytest.raises(SystemExit, match="^2$"):
        dry_run(capfd, TINY, f"--config.{part}.folder=/old", "--run=seed=1", f"--run={changed}")
    key = changed.partition("=")[0]
    assert capfd.readouterr().err == (
        f"error: run {changed}: {part}.folder=/old is the same for all runs, so that {key} would "
        f"change nothing; leave {part}.folder out\n"
    )


@pytest.mark.parametrize(
    ("changed", "makes"),
    [
        ("retrieval.encoder_tokens", ("buffer",)),
        ("rollout.step_tokens", ("buffer",)),
        ("rollout.prompt_tokens", ("sft", "buffer")),
        ("rollout.observation_tokens", ("sft", "buffer")),
        ("rollout.max_tokens", ("sft", "buffer")),
        ("rollout.retrieved_tokens", ()),
        ("rollout.max_calls", ("sft", "buffer")),
        ("task.chains.n_train", ("sft", "buffer")),
        ("tokenizer.folder", ("sft", "buffer")),
        ("prompt.system", ("sft", "buffer")),
        ("tools.output_chars", ("sft", "buffer")),
        ("model.width", ("sft",)),
        ("optimizer.b1", ("sft",)),
        ("optimizer.learning_rate", ()),
        ("buffer.samples", ("buffer",)),
        ("retrieval.unit", ("buffer",)),
        ("retrieval.mask", ("buffer",)),
        ("retrieval.max_chars", ("buffer",)),
        ("retrieval.encoder", ("buffer",)),
        ("retrieval.encoder_folder", ("buffer",)),
        ("retrieval.width", ("buffer",)),
        ("retrieval.schedule", ()),
        ("rl.steps", ()),
        ("method", ()),
    ],
)
def test_what_a_key_of_a_run_changes_is_made_for_it_and_all_else_is_shared(changed, makes):
    stages = ("sft", "buffer", "rl")
    common = {"stages": stages, "sft.folder": "", "buffer.folder": "", changed: 64}
    config = common | {changed: 32}
    makers, (job,) = sweep.make_jobs(Path("/w"), {"x": {changed: "32"}}, common, [config])
    made = {maker.name: maker.stages for maker in makers}
    assert made.get(f"shared_{changed}=32", ()) == makes
    assert job.stages == ("rl",)
    for stage, folder in (("sft", "coldstart"), ("buffer", "buffer")):
        maker = f"shared_{changed}=32" if stage in makes else "shared"
        assert job.settings[f"{stage}.folder"] == f"/w/{maker}/{folder}"

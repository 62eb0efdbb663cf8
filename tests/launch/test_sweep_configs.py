"""What the runs of a sweep share by their configs, all checked first; and a real small sweep."""

from __future__ import annotations

import json
import shlex
import shutil
from pathlib import Path

import pytest

from rapo_jax.text.tokens import build_tokenizer
from tests.launch.sweeps import ROOT, TINY, flags_of, sweep
from tests.model.checkpoints import make_model, save_model
from tests.tasks.published.fixtures import lines


def dry_run(capsys, *flags):
    """The flags of each run's command, by the last part of its workdir."""
    assert sweep.main([*flags, "--workdir=/w", "--dry-run"], ["-m", "main"]) == 0
    lines = [shlex.split(line)[3:] for line in capsys.readouterr().out.splitlines()]
    read = [dict(flag.removeprefix("--config.").split("=", 1) for flag in line) for line in lines]
    return {Path(flags["--workdir"]).name: flags for flags in read}


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
    other = f"--run={changed},{part}.folder=/other"
    assert dry_run(capfd, TINY, f"--config.{part}.folder=/old", other)


@pytest.mark.parametrize(
    ("changed", "makes"),
    [
        ("retrieval.encoder_tokens", ("buffer",)),
        ("rollout.step_tokens", ("buffer",)),
        ("rollout.prompt_tokens", ("sft", "buffer")),
        ("rollout.observation_tokens", ("sft", "buffer")),
        ("rollout.max_tokens", ("sft", "buffer")),
        ("rollout.retrieved_tokens", ()),
    ],
)
def test_what_the_token_limits_of_a_run_change_is_made_for_it(changed, makes):
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


def test_settings_of_a_run_or_the_caller_override_those_of_the_sweep(capsys):
    variants = ("--run=method=sft,stages=('sft','evaluate')", "--run=seed=3")
    runs = dry_run(capsys, TINY, "--config.buffer.folder=/b", *variants)
    assert {flags["buffer.folder"] for flags in runs.values()} == {"/b"}
    stages = [flags["stages"] for flags in runs.values()]
    assert stages[1:] == ["('sft','evaluate')", "('rl', 'evaluate', 'report')"]
    common = "--config.stages=('sft','buffer','evaluate')"
    runs = dry_run(capsys, TINY, common, "--sweep=seed=3")
    stages = [flags["stages"] for flags in runs.values()]
    assert stages == ["('sft', 'buffer')", "('evaluate',)"]


def test_runs_without_a_common_cold_start_or_buffer_share_nothing(capsys):
    rl = ("--config.stages=('rl',)", "--config.sft.folder=/c", "--config.buffer.folder=/b")
    assert list(dry_run(capsys, TINY, *rl, "--sweep=seed=0,1")) == ["seed=0", "seed=1"]
    changed = dry_run(capsys, TINY, "--sweep=sft.steps=3,4", "--config.buffer.folder=/b")
    assert changed["shared"]["stages"] == "('buffer',)"
    assert {run["buffer.folder"] for run in changed.values()} == {"/b"}


def test_a_sweep_of_the_papers_config_shares_its_buffer_and_no_cold_start(capsys, real_flags):
    runs = dry_run(capsys, *real_flags["qwen7b"], "--sweep=seed=0,1", "--run=method=grpo")
    assert runs["shared"]["stages"] == "('buffer',)"
    for seed in (0, 1):
        run = runs[f"grpo_seed={seed}"]
        assert run["stages"] == "('rl', 'evaluate', 'report')" and "sft.folder" not in run
        assert run["buffer.folder"] == "/w/shared/buffer"


def test_a_run_with_another_model_makes_a_buffer_for_its_tokenizer(capsys, real_flags, tmp_path):
    shutil.copytree(tmp_path / "model", tmp_path / "other")
    flags = (*real_flags["qwen7b"][:1], *real_flags["qwen7b"][2:])
    models = f"--sweep=model.folder={tmp_path / 'model'},{tmp_path / 'other'}"
    runs = dry_run(capsys, *flags, models)
    assert len(runs) == 4
    makers = [run for run in runs.values() if run["stages"] == "('buffer',)"]
    assert {run["model.folder"] for run in makers} == {
        str(tmp_path / name) for name in ("model", "other")
    }


@pytest.mark.parametrize("dry", [True, False])
@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ("rl.stpes=4", "error: run rl.stpes=4: --config.rl.stpes: the config has no such key; did"),
        ("rl.steps=0", "error: run rl.steps=0: rl.steps=0: must be at least 1"),
        ("rl.steps=soon", "error: run rl.steps=soon: --config.rl.steps=soon: expected int"),
        ("model.folder=/none", "error: run model.folder=-none: model.folder='/none': there is no"),
        ("task.reward=nosuch:f", "error: run task.reward=nosuch-f: task.reward='nosuch:f': there"),
    ],
)
def test_a_wrong_key_or_value_of_any_run_ends_with_2_before_anything_starts(
    tmp_path, program, capfd, wrong, message, dry
):
    more = ["--run=seed=1", f"--run={wrong}", *["--dry-run"] * dry]
    with pytest.raises(SystemExit, match="^2$"):
        sweep.main(flags_of(tmp_path / "w", *more), program)
    (line,) = capfd.readouterr().err.splitlines()
    assert line.startswith(message)
    assert not (tmp_path / "w").exists()


def test_a_user_task_is_refused_where_its_stages_need_a_scripted_agent(real_flags, capfd, program):
    flags = [*real_flags["user"], "--config.stages=('sft','rl')", "--sweep=seed=0,1"]
    with pytest.raises(SystemExit, match="^2$"):
        sweep.main([*flags, "--workdir=/w"], program)
    out, err = capfd.readouterr()
    assert "error: stages=('sft', 'rl'): task.name='one_task:TASK' has no demonstrations" in err
    assert out == ""


@pytest.fixture
def real_flags(tmp_path):
    """Flags of a sweep without a synthetic task: a small model, files of questions and traces."""
    model = tmp_path / "model"
    save_model(make_model("qwen2_tied", vocab_size=320), model)
    words = ("Anna", "Bob", "Carla", "Dora")
    asked = [{"question": f"Who sees {word}?", "answers": [word]} for word in words]
    build_tokenizer(model, [x["question"] for x in asked] * 9, vocab_size=320)
    traces = [
        {
            "question": x["question"],
            "response": f"<think>so</think><answer>\\boxed{{{x['answers'][0]}}}</answer>",
            "reward": 1.0,
        }
        for x in asked
    ]
    lines(tmp_path / "asked.jsonl", asked)
    lines(tmp_path / "traces.jsonl", traces)
    lines(tmp_path / "corpus.jsonl", [{"id": n, "contents": w} for n, w in enumerate(words)])
    (tmp_path / "one_task.py").write_text(
        "from rapo_jax.tasks import question_task\n"
        "print('imported')\n"
        f"ASKED = {[(x['question'], x['answers']) for x in asked]}\n"
        "TASK = question_task(lambda: {'train': ASKED, 'eval': ASKED[:2], 'documents': ['Bob']})\n"
    )
    (tmp_path / "one_config.py").write_text(
        "from tests.small import get_config as small\n"
        "def get_config():\n"
        "    c = small()\n"
        "    c.stages = ('buffer', 'rl', 'evaluate', 'report')\n"
        "    c.rl.steps = 1\n"
        "    c.rollout.update(prompt_tokens=80, max_tokens=160, max_calls=1)\n"
        "    c.rl.update(buckets=(160,), micro_tokens=1280)\n"
        "    return c\n"
    )
    own = (
        f"--config={tmp_path / 'one_config.py'}",
        f"--config.model.folder={model}",
        "--config.buffer.agent=none",
        f"--config.buffer.files=('{tmp_path / 'traces.jsonl'}',)",
        "--config.prompt.system=use tools",
    )
    return {
        "qwen7b": (f"--config={ROOT / 'configs' / 'qwen7b.py'}", *own[1:]),
        "dataset": (
            *own,
            "--config.task.name=dataset",
            f"--config.task.dataset.train={tmp_path / 'asked.jsonl'}",
            f"--config.task.dataset.eval={tmp_path / 'asked.jsonl'}[:2]",
            f"--config.task.dataset.documents={tmp_path / 'corpus.jsonl'}",
        ),
        "user": (*own, "--config.task.name=one_task:TASK"),
    }


@pytest.mark.parametrize("task", ["dataset", "user"])
def test_a_sweep_of_a_data_set_or_a_user_task_shares_its_buffer(capsys, real_flags, task):
    runs = dry_run(capsys, *real_flags[task], "--sweep=seed=0,1")
    assert [runs[name]["stages"] for name in ("shared", "seed=0")] == [
        "('buffer',)", "('rl', 'evaluate', 'report')",
    ]  # fmt: skip
    assert runs["seed=1"]["buffer.folder"] == "/w/shared/buffer"


def test_a_sweep_of_a_data_set_runs_to_its_report(tmp_path, monkeypatch, real_flags):
    monkeypatch.setenv("XLA_FLAGS", "")
    monkeypatch.chdir(ROOT)  # tests.small is there
    folder = tmp_path / "w"
    flags = [*real_flags["dataset"], f"--workdir={folder}", "--sweep=method=rapo"]
    assert sweep.main(flags) == 0
    done = {
        name: json.loads((folder / name / "done.json").read_text()) for name in ("shared", "rapo")
    }
    assert done["shared"] == {"stages": ["buffer"]}
    assert done["rapo"] == {"stages": ["rl", "evaluate", "report"]}
    assert not (folder / "rapo" / "buffer").exists()
    assert (folder / "report.html").exists()


def test_user_code_that_exits_is_a_failed_run(tmp_path, monkeypatch, real_flags, capsys):
    monkeypatch.setenv("XLA_FLAGS", "")
    monkeypatch.chdir(ROOT)
    (tmp_path / "leaving.py").write_text("import sys\ndef score(text, gold): sys.exit(0)\n")
    flags = [*real_flags["dataset"], "--config.task.reward=leaving:score", "--sweep=seed=0"]
    stages = "--config.stages=('rl',)"
    folder = tmp_path / "w"
    assert sweep.main([*flags, "--config.method=grpo", stages, f"--workdir={folder}"]) == 1
    out = capsys.readouterr().out
    assert "FAILED with status 1  seed=0" in out and "raised SystemExit" in out

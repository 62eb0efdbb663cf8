"""What the runs of a sweep share by their configs, all checked first; and a real small sweep."""

from __future__ import annotations

import json
import shutil

import pytest

from rapo_jax.text.tokens import build_tokenizer
from tests.launch.sweeps import ROOT, TINY, dry_run, flags_of, sweep
from tests.model.checkpoints import make_model, save_model
from tests.tasks.published.fixtures import lines


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

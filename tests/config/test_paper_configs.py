"""The configs of the paper's runs hold the paper's numbers (its sections 4 and 5.1)."""

from __future__ import annotations

import dataclasses
import importlib
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from configs import default
from rapo_jax.config.read import read_settings
from rapo_jax.suites.catalogue import SUITES
from rapo_jax.suites.paper import AVERAGED
from rapo_jax.tasks.published import SETS

ROOT = Path(__file__).parents[2]
MATHS_AND_QA = ("qwen3b", "qwen7b", "llama8b")
TEN = (
    "gsm8k", "math", "math500", "aime24", "aime25", "hotpotqa", "twowiki", "musique", "bamboogle",
    "webwalkerqa",
)  # fmt: skip


def load(name):
    """The module, its checked settings, and its trace files, replaced by one that exists."""
    module = importlib.import_module(f"configs.{name}")
    config = module.get_config().to_dict()
    files = config["buffer"]["files"]
    config["buffer"]["files"] = tuple(__file__ for _ in files)
    return module, read_settings(config), files


@pytest.mark.parametrize("name", [*MATHS_AND_QA, "web7b"])
def test_what_all_runs_of_the_paper_share(name):
    _, s, files = load(name)
    rl = s.rl
    assert (rl.m, rl.a, rl.clip_low, rl.clip_high, rl.kl) == (0.05, 0.2, 0.28, 0.28, 0.0)
    assert (rl.quality, rl.timing, rl.aggregation, rl.ddof) == (
        "decrease", "high", "sequence_mean", 1,
    )  # fmt: skip
    assert (s.retrieval.probability, s.retrieval.encoder) == (0.5, "minilm")
    assert (s.retrieval.noise, s.retrieval.unit, s.retrieval.schedule) == (0.0, "step", "constant")
    assert (s.buffer.samples, s.buffer.keep, s.buffer.agent) == (16, 5, "none")
    assert (s.rollout.temperature, s.rl.epochs, s.method) == (1.0, 1, "rapo")
    assert s.stages == ("buffer", "rl", "evaluate", "report") and len(files) == 1
    assert s.task.metric == "f1" and s.model.dtype == "bfloat16"


@pytest.mark.parametrize("name", MATHS_AND_QA)
def test_maths_and_qa(name):
    _, s, _ = load(name)
    r = s.rollout
    assert (r.questions, r.questions // s.rl.mini_batches) == (32, 16)
    assert (r.group_size, s.n_hybrid, r.max_calls) == (16, 8, 3)
    assert (s.tools.passages, s.tools.search.kind) == (3, "retrieval")
    assert s.task.dataset.train == "toolstar:train"
    assert sets(s.task.dataset.eval) == ("gsm8k", "hotpotqa")
    assert s.evaluate.suites == TEN == AVERAGED
    assert (r.prompt_tokens, r.max_tokens - r.prompt_tokens) == (1536, 4096)


def test_web():
    _, s, _ = load("web7b")
    r = s.rollout
    assert (r.questions, r.questions // s.rl.mini_batches) == (128, 64)
    assert (r.group_size, s.n_hybrid, r.max_calls) == (4, 2, 6)
    assert (s.tools.passages, s.tools.search.kind) == (10, "serper")
    assert s.task.dataset.train == "asearcher:base[:2000],webdancer:train"
    assert sets(s.task.dataset.eval) == ("simpleqa",)
    assert set(s.evaluate.suites) == {name for name, x in SUITES.items() if x.family == "web"}
    assert SETS["webdancer"].rows["train"] == 200


def sets(wanted):
    """The sets that a config names, each with a split it has."""
    parts = [part.removesuffix("[:200]").split(":") for part in wanted.split(",")]
    assert all(split in SETS[name].files for name, split in parts)
    return tuple(name for name, _ in parts)


def test_the_runs_differ_only_by_the_model_and_what_its_size_needs():
    _, base, _ = load("qwen7b")
    folders = {}
    for name in MATHS_AND_QA:
        _, s, _ = load(name)
        folders[name] = Path(s.model.folder).name
        model = dataclasses.replace(s.model, folder=base.model.folder)
        rollout = dataclasses.replace(s.rollout, slots=base.rollout.slots)  # of the same tapes
        assert dataclasses.replace(s, model=model, mesh=base.mesh, rollout=rollout) == base
    assert folders == {
        "qwen3b": "Qwen2.5-3B-Instruct",
        "qwen7b": "Qwen2.5-7B-Instruct",
        "llama8b": "Meta-Llama-3-8B-Instruct",
    }


@pytest.mark.parametrize(
    ("name", "scores"),
    [
        ("qwen3b", "47.0 (GRPO 40.7)"),
        ("qwen7b", "51.3 (GRPO 46.7)"),
        ("llama8b", "47.6 (GRPO 40.6)"),
    ],
)
def test_a_docstring_holds_command_hardware_memory_and_the_papers_score(name, scores):
    module, _, _ = load(name)
    text = " ".join(module.__doc__.split())
    assert f"python -m rapo_jax.main --config=configs/{name}.py" in text
    assert f"bash launch/prepare.sh configs/{name}.py" in text
    assert scores in text and "GB" in text and "not measured" in text
    assert re.search(r"Hardware: \d GPUs of \d+ GB", text)


@pytest.mark.parametrize("name", [*MATHS_AND_QA, "web7b"])
def test_a_config_is_a_short_difference(name):
    source = Path(importlib.import_module(f"configs.{name}").__file__).read_text()
    assert len(source.split("def get_config")[1].splitlines()) < 30
    assert load(name)[0].get_config().to_dict().keys() == default.get_config().to_dict().keys()


def test_every_path_is_in_the_one_data_directory():
    code = (
        "from configs import qwen7b, web7b\n"
        "for module in (qwen7b, web7b):\n"
        "    c = module.get_config()\n"
        "    print(c.model.folder, c.task.dataset.manual_dir, c.retrieval.encoder_folder,\n"
        "          c.tools.search.cache, *c.buffer.files, sep='\\n')\n"
    )
    for data, start in (("/big/disk", "/big/disk/"), (None, "data/")):
        environment = {k: v for k, v in os.environ.items() if k != "RAPO_DATA"}
        environment |= {"RAPO_DATA": data} if data else {}
        done = subprocess.run(
            [sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True,
            text=True, check=True,
        )  # fmt: skip
        assert all(line.startswith(start) for line in done.stdout.splitlines())
        assert len(done.stdout.splitlines()) == 10

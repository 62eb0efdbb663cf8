"""benchmarks/peers.py: all of it that needs no peer's environment."""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path

import jax
import pytest

from benchmarks import peers
from benchmarks.peers import FRAMEWORKS, MODELS, Measurement, make_model, parse, table, unequal
from benchmarks.random_model import random_params
from rapo_jax.config import ModelSettings
from rapo_jax.model.hf_config import settings_from_hf
from rapo_jax.model.sharding import make_mesh
from rapo_jax.run.policy import policy_shapes
from rapo_jax.run.weights import read_folder
from rapo_jax.text.tokens import load_tokens

TINY = ModelSettings(vocab=512, width=16, ffn=32, layers=1, heads=2, kv_heads=1, head_width=8)


def test_names_of_peers_are_checked(capsys):
    assert parse([]).peers == ["tunix", "trl"]
    given = parse(["--only=grpo", "--peers=trl", "--rounds=2", "--threads=2"])
    assert (given.only, given.peers, given.rounds, given.threads) == ("grpo", ["trl"], 2, 2)
    for wrong in ("--peers=tunix,nemo", "--rounds=0", "--only=prefill"):
        with pytest.raises(SystemExit):
            parse([wrong])
    assert "--peers=nemo: choose of tunix, trl" in capsys.readouterr().err


def test_the_table_shows_medians_and_the_ratio_to_the_faster_peer():
    lines = [
        '{"measured": "decode", "framework": "rapo", "cpu_seconds": [9, 1, 2]}',
        '{"measured": "decode", "framework": "tunix", "cpu_seconds": [3, 3, 3]}',
        '{"measured": "decode", "framework": "trl", "cpu_seconds": [4, 6, 5]}',
        '{"measured": "step", "framework": "rapo", "cpu_seconds": [1]}',
        '{"measured": "step", "framework": "tunix", "error": "not installed: no such version"}',
        '{"measured": "step", "framework": "trl", "cpu_seconds": [0.5], "equal_tokens": 1.0}',
        '{"measured": "alone", "framework": "rapo", "cpu_seconds": [1]}',
    ]
    rows = [line[2:-2].split(" | ") for line in table([json.loads(line) for line in lines])]
    assert rows[0][1:-1] == list(FRAMEWORKS.values())
    assert rows[2] == ["decode", "2", "3", "5", "1.50 ×"]
    assert rows[3] == ["step", "1", "not measured", "0.5", "0.50 ×"]
    assert rows[4] == ["alone", "1", "not measured", "not measured", "-"]


def test_greedy_tokens_that_differ_are_reported_with_their_share():
    same = {"measured": "decode", "framework": "tunix", "equal_tokens": 1.0}
    other = {"measured": "decode", "framework": "trl", "equal_tokens": 0.875}
    (line,) = unequal([same, other, {"measured": "step", "framework": "trl"}])
    assert line.startswith("decode: 87.50% of the greedy tokens of transformers, TRL equal")


def test_the_made_checkpoint_loads_with_all_its_float32_bits(tmp_path):
    make_model(tmp_path, TINY)
    model = settings_from_hf(tmp_path, base=ModelSettings(init_scale=TINY.init_scale))
    assert model == dataclasses.replace(TINY, folder=str(tmp_path))
    mesh = make_mesh(jax.devices()[:1])
    loaded = read_folder(model, mesh, dtype="float32")
    wanted = random_params(TINY, mesh)
    assert jax.tree.all(jax.tree.map(lambda a, b: bool((a == b).all()), loaded, wanted))


def test_the_small_model_has_4_5_million_parameters():
    leaves = jax.tree.leaves(policy_shapes(MODELS["4.5M"]))
    assert sum(leaf.size for leaf in leaves) == pytest.approx(4.5e6, rel=0.01)


def test_every_prompt_has_the_width_that_was_asked_for(tmp_path):
    make_model(tmp_path, TINY)
    load = peers.workload(tmp_path, Measurement("decode", "tiny", 3, 4, width=12))
    tokens = load_tokens(tmp_path / "tokenizer")
    assert [tokens.prompt_ids("", text) for text in load["questions"]] == load["prompts"]
    assert {len(prompt) for prompt in load["prompts"]} == {12}


@pytest.mark.parametrize("kind", ["decode", "grpo"])
def test_rapo_is_measured_and_peers_that_cannot_run_are_named(kind, tmp_path, monkeypatch, capsys):
    """This environment has no tunix: its worker starts here and fails. That of TRL is not made."""

    def make_environment(folder: Path, requirements: Path) -> Path:
        if requirements.stem == "trl":
            raise RuntimeError("no matching distribution")
        return Path(sys.executable)

    monkeypatch.setattr(peers, "make_environment", make_environment)
    monkeypatch.setattr(peers, "MODELS", {"tiny": TINY})
    m = Measurement(kind, "tiny", 2, 4, group=1 if kind == "decode" else 2, width=12)
    monkeypatch.setattr(peers, "MEASUREMENTS", (m,))
    out = tmp_path / "peers.jsonl"
    peers.main(["--rounds=2", f"--out={out}"])
    rapo, tunix, trl = map(json.loads, out.read_text().splitlines())
    assert "error" not in rapo, rapo
    assert len(rapo["cpu_seconds"]) == len(rapo["wall_seconds"]) == 2
    assert rapo["versions"]["jax"] == jax.__version__ and rapo["threads"] == 1
    assert rapo.keys() >= {"cpu", "date", "commit"}
    assert tunix["error"] == "ended with 1: ModuleNotFoundError: No module named 'tunix'"
    assert trl["error"] == "not installed: no matching distribution"
    last = capsys.readouterr().out.splitlines()[-1]
    assert last.startswith(f"| {m.name} | ") and last.endswith(
        "| not measured | not measured | - |"
    )

"""benchmarks/gpu.py: its table on a CPU, and its least bytes and FLOPs worked out by hand."""

from __future__ import annotations

import ast
import dataclasses
import json
import shlex
from types import SimpleNamespace

import jax
import pytest

from benchmarks.gpu import main
from benchmarks.gpu_sizes import (
    HEAD,
    Row,
    chip_of,
    decode_bytes,
    read_flops,
    read_weights,
    settings_of,
    table,
    trained_flops,
)
from benchmarks.random_model import command, random_params, write_folder
from benchmarks.timing import Timed, interleaved
from configs import default
from rapo_jax.config.read import read_settings
from rapo_jax.model.sharding import make_mesh
from rapo_jax.plan.arithmetic import cache_bytes
from rapo_jax.run.policy import newest_weights
from rapo_jax.text.tokens import load_tokens

# Qwen2.5-7B: 28 layers, 3584 wide, 28 heads and 4 kv heads of 128, ffn 18,944
LAYER_7B = 3584 * (3584 + 2 * 512 + 3584 + 3 * 18_944)
BIASES_7B = 3584 + 2 * 512
NORMS_7B = (2 * 28 + 1) * 3584
HEAD_7B = 152_064 * 3584
# Qwen2.5-1.5B: 28 layers, 1536 wide, 12 heads and 2 kv heads of 128, ffn 8960
LAYER_1B = 1536 * (1536 + 2 * 256 + 1536 + 3 * 8960)
BIASES_1B = 1536 + 2 * 256
NORMS_1B = (2 * 28 + 1) * 1536
HEAD_1B = 151_936 * 1536


@pytest.fixture(scope="module")
def model_7b():
    return settings_of("7b", adapters=32)[1]


@pytest.fixture(scope="module")
def model_1b():
    return settings_of("1.5b", adapters=0)[1]


def test_a_table_of_a_tiny_model_has_every_measurement_and_no_share_of_unknown_peaks(
    tmp_path, capsys
):
    rows = main(["--model=tiny", f"--output={tmp_path / 'gpu.json'}"])
    out = capsys.readouterr().out
    lines = [line[2:-2].split(" | ") for line in out.splitlines() if line.startswith("| ")]
    assert tuple(lines[0]) == HEAD and {len(line) for line in lines} == {len(HEAD)}
    measured = [(row.measured, row.rows) for row in rows]
    assert measured == [
        ("sampling weights", 0),
        *(("read prompts", 2), ("decode", 2)),
        ("rollout", 4),
        ("update", 2),
    ]
    assert all(line[HEAD.index("model")] == "tiny" for line in lines[2:])
    assert all(len(row.seconds) == 1 for row in rows)
    shares = {row.measured: row.share for row in rows}
    assert 0 <= shares.pop("rollout") <= 1  # the host's share needs no peaks
    assert set(shares.values()) == {None}
    assert "its peak numbers are not known" in out and f"jax {jax.__version__}" in out
    output = json.loads((tmp_path / "gpu.json").read_text())
    assert [row["measured"] for row in output["rows"]] == [row.measured for row in rows]
    command = f"python benchmarks/gpu.py --model=tiny --output={tmp_path}/gpu.json"
    assert output["command"] == command


def test_decoding_reads_all_weights_but_the_embedding_and_what_is_cached(model_7b, model_1b):
    # bfloat16, norms in float32; adapters of rank 32 lie beside the weights of 7B
    adapters = 28 * 32 * (2 * (3584 + 3584) + 2 * (3584 + 512) + 3 * (3584 + 18_944))
    weights = 2 * (28 * (LAYER_7B + BIASES_7B) + HEAD_7B + adapters) + 4 * NORMS_7B
    assert read_weights(model_7b) == weights
    # tied: the embedding is the head, and is read
    assert read_weights(model_1b) == 2 * (28 * (LAYER_1B + BIASES_1B) + HEAD_1B) + 4 * NORMS_1B
    assert cache_bytes(model_7b, 4) == 2 * 4 * 128 * 2 * 28 == 57_344
    # two tokens behind a prompt of 10 attend to 11 and to 12
    read = decode_bytes(model_7b, rows=64, prompt=10, ticks=2)
    assert read == 2 * weights + 64 * (11 + 12) * 57_344


def test_a_trained_token_costs_six_flops_a_weight_and_attention(model_1b):
    attention = 4 * 12 * 128 * 28 * 4096 / 2  # scores and their mix with half of 4096 tokens
    matrix = 28 * (LAYER_1B + BIASES_1B) + NORMS_1B + HEAD_1B
    assert trained_flops(model_1b, width=4096) == 6 * matrix + 3 * attention
    assert read_flops(model_1b, width=4096) == 2 * (matrix - HEAD_1B) + attention


def test_a_frozen_weight_costs_four(model_7b):
    attention = 4 * 28 * 128 * 28 * 4096 / 2
    matrix = 28 * (LAYER_7B + BIASES_7B) + NORMS_7B + HEAD_7B
    adapters = 28 * 32 * (2 * (3584 + 3584) + 2 * (3584 + 512) + 3 * (3584 + 18_944))
    wanted = 4 * matrix + 6 * adapters + 3 * attention
    assert trained_flops(model_7b, width=4096) == wanted


def test_a_work_that_runs_out_of_memory_is_reported_and_the_others_continue():
    calls = []

    def large():
        raise RuntimeError("RESOURCE_EXHAUSTED: Out of memory while trying to allocate 9 bytes")

    timed = interleaved({"large": large, "small": lambda: calls.append(1)}, repeats=3)
    assert timed["large"] == Timed([], None, "out of memory")
    assert len(timed["small"].seconds) == 3 and len(calls) == 4  # one of them compiles

    def wrong():
        raise RuntimeError("INTERNAL: no")

    with pytest.raises(RuntimeError, match="INTERNAL"):
        interleaved({"wrong": wrong}, repeats=1)


def test_a_row_shows_medians_and_a_missing_number_as_a_dash():
    row = Row("decode", 64, 100, "7b", (0.5, 0.1, 0.3), total=600, share=0.256, of="x")
    assert row.cells()[4:9] == ("300", "500", "2,000", "25.6 %", "x")
    assert row._replace(seconds=(0.1, 0.3)).median == pytest.approx(0.2)
    empty = Row("update", 8, 4096, "7b", note="out of memory")
    assert table([empty])[2] == "| 7b | update | 8 | 4096 | - | - | - | - | - | - | out of memory |"


@pytest.mark.parametrize(
    ("kind", "flops"),
    [("NVIDIA H200", 989e12), ("NVIDIA H100 80GB HBM3", 989e12), ("NVIDIA H100 PCIe", None)],
)
def test_only_the_published_variant_of_a_chip_has_known_peak_numbers(kind, flops):
    chip = chip_of(SimpleNamespace(device_kind=kind))
    assert (chip.flops if chip else None) == flops


def test_random_adapters_change_nothing_at_first():
    model = settings_of("tiny", adapters=2)[1]
    params = random_params(model, make_mesh(jax.devices()[:1]))
    assert params["lora"]["query"]["a"].any() and not params["lora"]["query"]["b"].any()
    assert (params["norm"]["scale"] == 1).all() and not params["blocks"]["query"]["bias"].any()
    assert params["blocks"]["up"]["kernel"].std() == pytest.approx(model.init_scale, rel=0.02)


def test_a_run_can_start_from_a_folder_of_random_weights(tmp_path):
    s, model = settings_of("tiny", adapters=0)
    mesh = make_mesh(jax.devices()[:1])
    params = random_params(model, mesh)
    folder = tmp_path / "random"
    write_folder(folder, model, params)
    s = dataclasses.replace(s, model=dataclasses.replace(model, folder=str(folder)))
    loaded = newest_weights(s, tmp_path / "none").load(mesh, dtype="float32")
    wanted = params["blocks"]["up"]["kernel"].astype("bfloat16").astype("float32")
    assert (loaded["blocks"]["up"]["kernel"] == wanted).all()
    tokens = load_tokens(folder / "tokenizer", vocab_size=model.vocab)
    assert len(tokens.bytes_V) == model.vocab and tokens.eos_ids


def test_the_printed_command_sets_existing_config_keys(tmp_path):
    words = shlex.split(command(tmp_path / "random"))
    assert words[:3] == ["python", "-m", "rapo_jax.main"]
    c = default.get_config()
    with c.unlocked():
        for flag in words[5:]:
            path, _, value = flag.removeprefix("--config.").partition("=")
            *groups, key = path.split(".")
            group = c
            for name in groups:
                group = group[name]
            group[key] = value if isinstance(group[key], str) else ast.literal_eval(value)
    s = read_settings(c.to_dict())
    assert s.stages == ("buffer", "rl") and s.rl.steps == 3 and s.model.dtype == "bfloat16"

"""The stage plan: its tables, its refusals, and the compiled programs."""

from __future__ import annotations

import dataclasses
from types import SimpleNamespace

import jax
import pytest

from configs import default
from rapo_jax.config.read import read_settings
from rapo_jax.model.sharding import make_mesh
from rapo_jax.plan.chips import slices
from rapo_jax.plan.devices import slice_mesh
from rapo_jax.plan.programs import compile_program, lowered_rollout, lowered_update
from rapo_jax.plan.shapes import Split
from rapo_jax.plan.stage import plan
from tests.compiling import cached_in


def settings_of(**keys):
    c = default.get_config()
    c.stages = ("plan",)
    c.model.vocab = 64
    for path, value in keys.items():
        group, _, key = path.partition("__")
        c[group][key] = value
    return read_settings(c.to_dict())


def test_the_table_has_a_row_for_every_named_slice(tmp_path, capsys):
    plan(settings_of(plan__topology="v5e:2x2, h100x4"), tmp_path)
    output = capsys.readouterr().out
    rows = [
        line.split(" | ")
        for line in output.splitlines()
        if line.startswith("| ") and "---" not in line
    ]
    assert [row[0] for row in rows] == ["| slice", "| v5e:2x2", "| h100x4"]
    assert len({len(row) for row in rows}) == 1
    assert rows[1][1] == rows[2][1] == "yes"  # a model of a few thousand weights
    assert "v5e:2x2: --config.mesh.data=1" in output
    assert list(tmp_path.iterdir()) == []


def test_adapters_are_planned_and_printed(tmp_path, capsys):
    s = settings_of(plan__topology="v5e:1x1")
    lora = dataclasses.replace(s.model.lora, rank=4)
    s = dataclasses.replace(s, model=dataclasses.replace(s.model, lora=lora))
    plan(s, tmp_path)
    output = capsys.readouterr().out
    # default.py: 2 layers, 64 wide, 4 heads of 16, 2 kv heads, ffn 192
    count = 2 * 4 * (2 * (64 + 64) + 2 * (64 + 32) + 3 * (64 + 192))
    assert f"frozen, {count / 1e6:.3g} million in adapters of rank 4; " in output


def test_gpu_names_the_smallest_of_both_kinds(tmp_path, capsys):
    plan(settings_of(plan__topology="gpu"), tmp_path)
    output = capsys.readouterr().out
    assert "| h100x1 | yes" in output and "| h200x1 | yes" in output


def test_chips_that_cannot_share_the_questions_are_reported(tmp_path, capsys):
    plan(settings_of(plan__topology="v5e:16x16", rollout__questions=2), tmp_path)
    assert "v5e:16x16: its 256 chips cannot share rollout.questions=2" in capsys.readouterr().out


def test_a_kind_whose_smallest_slice_cannot_share_the_questions_is_reported(tmp_path, capsys):
    keys = {"rollout__questions": 5, "rl__mini_batches": 1}
    s = settings_of(plan__topology="v4, v5e", **keys)  # v4 has no slice of less than 4 chips
    model = dataclasses.replace(s.model, heads=2)  # over 2 chips at most
    plan(dataclasses.replace(s, model=model), tmp_path)
    output = capsys.readouterr().out
    assert "v4:2x2x1: its 4 chips cannot share rollout.questions=5 evenly" in output
    assert "| v5e:1x1 | yes" in output and output.count("cannot share") == 1


@pytest.mark.parametrize("topology", ["", "v5e:3x5", "v9"])
def test_an_unknown_topology_is_refused(topology, tmp_path):
    with pytest.raises(ValueError, match=f"plan.topology='{topology}'"):
        plan(settings_of(plan__topology=topology), tmp_path)


@pytest.mark.parametrize("topology", ["v5e:2x2", "h100x2"])
def test_without_its_compiler_a_slice_is_refused_before_anything_is_printed(
    topology, tmp_path, capsys, monkeypatch
):
    def missing(*_, **__):
        raise NotImplementedError("topology not implemented")

    monkeypatch.setattr("jax.experimental.topologies.get_topology_desc", missing)
    s = settings_of(plan__topology=topology)
    with pytest.raises(ValueError, match=rf"plan.topology='{topology}': .* bash launch/plan.sh"):
        plan(dataclasses.replace(s, plan=dataclasses.replace(s.plan, compile=True)), tmp_path)
    assert capsys.readouterr().out == ""


def test_gpus_are_described_to_the_compiler_by_kind_and_by_host(monkeypatch):
    asked = []

    def described(**description):
        asked.append(description)
        return SimpleNamespace(devices=jax.devices()[:8])

    monkeypatch.setattr("jax.experimental.topologies.get_topology_desc", described)
    mesh = slice_mesh(slices("h100x8")[0], Split(2, 4, 1, "full"))
    assert dict(mesh.shape) == {"data": 1, "fsdp": 2, "tensor": 4}
    with pytest.raises(ValueError):  # the stand-in has 8 devices
        slice_mesh(slices("h200x16")[0], Split(4, 4, 1, "full"))
    assert [each["topology"] for each in asked] == ["1x1x8", "1x2x8"]
    assert ["H100" in each["target_config"] for each in asked] == [True, False]


@pytest.mark.parametrize("rank", [0, 4])
def test_the_programs_of_a_run_lower_from_shapes_alone(rank):
    s = settings_of(
        rollout__questions=4,
        rollout__group_size=2,
        rollout__n_hybrid=1,
        rollout__prompt_tokens=8,
        rollout__step_tokens=4,
        rollout__observation_tokens=4,
        rollout__retrieved_tokens=4,
        rollout__max_tokens=32,
        rl__buckets=(32,),
        rl__micro_tokens=128,
    )
    lora = dataclasses.replace(s.model.lora, rank=rank)
    model = dataclasses.replace(s.model, layers=1, lora=lora)
    mesh = make_mesh(jax.devices()[:4], data=1, fsdp=2, tensor=2)
    add, apply = lowered_update(s, model, mesh)
    rollout = lowered_rollout(s, model, mesh, slots=2, key_width=8)
    assert all("sdy.mesh" in each.as_text() for each in (add, rollout))
    found = compile_program("optimizer", lambda: apply, chips=4)
    assert found.refused == "" and found.argument > 0
    assert found.sent["all-reduce"] > 0  # the norm of the gradient is a sum over all devices


def test_a_program_that_is_too_large_has_the_compiler_s_message():
    class Large:
        def compile(self):
            raise RuntimeError(
                "RESOURCE_EXHAUSTED: Ran out of memory in memory space hbm. Used 18.5G of 15.75G "
                "hbm. Exceeded hbm capacity by 2.75G."
            )

    found = compile_program("update", Large, chips=4)
    assert found.temporary == 18.5 * 2**30
    assert found.refused.startswith("Ran out of memory")


def test_programs_of_chips_that_are_not_here_are_kept_out_of_the_cache(tmp_path):
    with cached_in(tmp_path) as names:
        jax.jit(lambda x: x + 1).lower(1.0).compile()  # jax opens its cache
        before_it = names()
        compile_program("planned", lambda: jax.jit(lambda x: x * 3).lower(1.0), chips=1)
        assert before_it and names() == before_it


def test_other_errors_of_the_compiler_are_raised():
    class Wrong:
        def compile(self):
            raise RuntimeError("INTERNAL: no")

    with pytest.raises(RuntimeError, match="INTERNAL"):
        compile_program("update", Wrong, chips=4)

"""Meshes of eight devices: what is sampled and trained is what one device samples and trains."""

from __future__ import annotations

import dataclasses
import re
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from rapo_jax.config import OptimizerSettings, RlSettings
from rapo_jax.model.cached_attention import BLOCK
from rapo_jax.model.decoding import empty_cache, extend, sampling_copy
from rapo_jax.model.sharding import (
    layout,
    make_mesh,
    name_of,
    place,
    replicated,
    rows,
    state_layout,
)
from rapo_jax.model.transformer import init_params
from rapo_jax.train.optimizer import make_optimizer
from rapo_jax.train.update import Updater, rapo_loss
from rapo_jax.types import Batch, TrainState, Trajectory

GROUP, HYBRID = 4, 2
MESHES = [(8, 1, 1), (1, 8, 1), (2, 2, 2), (4, 1, 2)]


@pytest.fixture(scope="module")
def batch(tapes):
    rng = np.random.default_rng(0)
    count = len(tapes.length_B)
    return Batch(
        tapes.token_BT,
        tapes.source_BT,
        tapes.logp_BT,
        rng.normal(size=count).astype(np.float32),
        np.zeros(count, np.float32),
    )


def trained(house, batch, length_B, mesh):
    """The state after one Adam update from the house's parameters, where the mesh puts it."""
    optimizer = make_optimizer(
        OptimizerSettings(clip_norm=0.5, b2=0.99, eps=1e-6), optax.constant_schedule(1e-2)
    )
    where = layout(mesh, house.model, house.params, name="training")
    params = jax.device_put(house.params, where)
    moments = state_layout(mesh, optimizer, params, where)
    state = TrainState(
        params,
        jax.device_put(optimizer.init(params), moments),
        jax.device_put(jnp.int32(0), replicated(mesh)),
    )
    updater = Updater(
        rapo_loss(house.model, house.settings.rl),
        optimizer,
        state,
        mesh=mesh,
        rl=RlSettings(buckets=(96,), micro_tokens=16 * 96),
    )
    return updater.update(state, batch, length_B.astype(np.int64), None)[0]


@pytest.fixture(scope="module")
def alone(house, batch, tapes):
    return jax.device_get(trained(house, batch, tapes.length_B, make_mesh(jax.devices()[:1])))


@pytest.mark.parametrize("shape", MESHES)
def test_an_update_on_any_mesh_is_that_of_one_device(house, batch, tapes, alone, shape):
    data, fsdp, tensor = shape
    state = trained(house, batch, tapes.length_B, make_mesh(data=data, fsdp=fsdp, tensor=tensor))
    for left, right in zip(jax.tree.leaves(state), jax.tree.leaves(alone), strict=True):
        # an entry moves by up to 1e-2; Adam divides by the gradient's size, so the rounding of a
        # gradient near 0 counts as if it were of usual size
        np.testing.assert_allclose(left, right, atol=5e-5)


@pytest.mark.parametrize("shape", MESHES[1:])
def test_no_device_holds_a_whole_weight_or_adam_moment(house, batch, tapes, shape):
    data, fsdp, tensor = shape
    mesh = make_mesh(data=data, fsdp=fsdp, tensor=tensor)
    state = trained(house, batch, tapes.length_B, mesh)
    trees = (
        state.params,
        optax.tree.get(state.opt_state, "mu"),
        optax.tree.get(state.opt_state, "nu"),
    )
    cut = 0
    for tree in trees:
        for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]:
            name = name_of(path)
            one_kv_head = fsdp == 1 and ("key/" in name or "value/" in name)
            if leaf.ndim == 1 or name.endswith(("scale", "bias")) or one_kv_head:
                continue
            assert max(shard.data.size for shard in leaf.addressable_shards) < leaf.size, name
            cut += 1
    assert cut >= 3 * 5


class Rolled(NamedTuple):
    """A rollout of eight devices, and its compiled program."""

    tape: Trajectory
    hlo: str
    tensor: int


@pytest.fixture(scope="module", params=MESHES, ids=str)
def rolled(house, make_sampler, request):
    _, fsdp, tensor = request.param
    playing = make_sampler(devices=8, driver="jit", fsdp=fsdp, tensor=tensor)
    sampler, texts = playing.sampler, []
    make_program = sampler._program

    def keeping(*how):
        def run(*arguments):
            program = make_program(*how).lower(*arguments).compile()
            texts.append(program.as_text())
            return program(*arguments)

        return run

    sampler._program = keeping
    tape = sampler.sample(
        playing.params,
        jax.random.key(0),
        house.asked,
        group_size=GROUP,
        n_hybrid=HYBRID,
        temperature=1.0,
        probability=0.7,
    )
    return Rolled(tape, *texts, tensor)


def test_a_rollout_on_any_mesh_writes_the_tapes_of_one_device(rolled, tapes):
    for name in ("token_BT", "source_BT", "step_BT", "status_B", "length_B"):
        np.testing.assert_array_equal(getattr(rolled.tape, name), getattr(tapes, name))
    np.testing.assert_allclose(rolled.tape.logp_BT, tapes.logp_BT, atol=2e-5)


COLLECTIVE = re.compile(
    r" (all-reduce|all-gather|all-to-all|reduce-scatter|collective-\w+)(?:-start)?\((.*)"
)
EXPLICIT = re.compile(r"(?:replica_groups|source_target_pairs)=\{((?:\{[\d,]+\},?)+)\}")
IOTA = re.compile(r"replica_groups=\[(\d+),(\d+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?")


def groups_of(line):
    """The groups of devices of a collective in compiled HLO, whichever way they are written."""
    if explicit := EXPLICIT.search(line):
        return [
            [int(n) for n in group.split(",")]
            for group in re.findall(r"[\d,]*\d", explicit[1])
            if group
        ]
    iota = IOTA.search(line)
    assert iota, line
    count, size, shape, order = iota.groups()
    devices = np.arange(int(count) * int(size)).reshape([int(n) for n in shape.split(",")])
    if order:
        devices = devices.transpose([int(n) for n in order.split(",")])
    return devices.reshape(int(count), int(size)).tolist()


def test_the_groups_of_a_collective_are_read_in_every_notation():
    assert groups_of("all-reduce(x), replica_groups=[2,2]<=[4], y") == [[0, 1], [2, 3]]
    assert groups_of("all-reduce(x), replica_groups=[2,2]<=[2,2]T(1,0)") == [[0, 2], [1, 3]]
    assert groups_of("all-gather(x), replica_groups={{0,2},{1,3}}, z={1}") == [[0, 2], [1, 3]]
    assert groups_of("collective-permute(x), source_target_pairs={{0,1}}") == [[0, 1]]


def test_no_collective_of_a_rollout_crosses_shards_of_rows(rolled):
    lines = [line for line in rolled.hlo.splitlines() if COLLECTIVE.search(line)]
    assert "while(" in rolled.hlo and bool(lines) is (rolled.tensor > 1)
    for line in lines:
        for group in groups_of(line):
            # tensor is the mesh's last axis: its neighbours have consecutive numbers
            assert len({device // rolled.tensor for device in group}) == 1, line


@pytest.mark.parametrize("kv_heads", [1, 2])
def test_a_decode_step_gathers_no_cache(house, kv_heads):
    mesh = make_mesh(data=2, fsdp=2, tensor=2)
    model = dataclasses.replace(house.model, kv_heads=kv_heads)
    params = jax.jit(init_params, static_argnums=0)(model, jax.random.key(0))
    params = sampling_copy(model, params)
    params = jax.device_put(params, layout(mesh, model, params, name="sampling"))
    positions = 5 * BLOCK  # a number that no other axis has
    cache = place(empty_cache(model, rows=8, positions=positions), rows(mesh))
    token_B1, start_B = place((np.zeros((8, 1), np.int32), np.zeros(8, np.int32)), rows(mesh))

    def decode_step(params, cache, token_B1, start_B):
        return extend(model, params, cache, token_B1, start_B, first=0, length_B=start_B + 1)

    text = jax.jit(decode_step).lower(params, cache, token_B1, start_B).compile().as_text()
    assert str(positions) in text
    gathers = re.findall(r"= \S*\[([\d,]*)\]\S* all-gather", text)
    assert not [shape for shape in gathers if str(positions) in shape.split(",")]


def test_kv_heads_that_tensor_does_not_divide_are_whole_on_every_device(house):
    mesh = make_mesh(data=4, fsdp=1, tensor=2)
    assert (house.model.heads, house.model.kv_heads) == (2, 1)
    copy = sampling_copy(house.model, house.params)
    (layer,) = layout(mesh, house.model, copy, name="sampling")["layers"]
    assert "tensor" not in layer["params"]["key"]["kernel"].spec
    assert "tensor" in layer["params"]["query"]["kernel"].spec


def test_more_ways_of_tensor_parallelism_than_heads_are_refused(house):
    with pytest.raises(ValueError, match="mesh.tensor=4: it must divide model.heads=2"):
        layout(make_mesh(tensor=4), house.model, house.params, name="training")

"""The mesh, and the sharding of rows and parameters over it."""

from __future__ import annotations

import dataclasses
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rapo_jax.model.describe import describe
from rapo_jax.model.sharding import (
    MESH_AXES,
    make_mesh,
    place,
    replicated,
    rows,
)
from rapo_jax.model.transformer import init_params


@pytest.mark.parametrize("count", [1, 8])
def test_all_given_devices_are_on_the_data_axis(count):
    mesh = make_mesh(jax.devices()[:count])
    assert dict(mesh.shape) == {"data": count, "fsdp": 1, "tensor": 1}
    assert mesh.axis_names == MESH_AXES


def test_a_mesh_without_a_choice_takes_every_device():
    assert make_mesh().devices.size == len(jax.devices()) == 8


def test_rows_are_split_in_order_and_the_other_axes_are_not_split():
    mesh = make_mesh()
    tree = place({"token_BT": np.arange(48).reshape(16, 3), "mask_B": np.arange(16)}, rows(mesh))
    for shard in tree["token_BT"].addressable_shards:
        first = 2 * shard.device.id
        np.testing.assert_array_equal(shard.data, np.arange(48).reshape(16, 3)[first : first + 2])
    assert {shard.data.shape for shard in tree["mask_B"].addressable_shards} == {(2,)}


def test_a_replicated_array_is_whole_on_every_device():
    placed = place({"w": jnp.arange(6.0)}, replicated(make_mesh()))["w"]
    assert len(placed.addressable_shards) == 8
    for shard in placed.addressable_shards:
        np.testing.assert_array_equal(shard.data, np.arange(6.0))


def test_the_start_up_table_counts_the_bytes_on_a_device(small_settings):
    model = dataclasses.replace(small_settings().model, vocab=64)
    params = jax.eval_shape(lambda: init_params(model, jax.random.key(0)))
    table, notes = describe(make_mesh(data=2, fsdp=2, tensor=2), model, params)
    assert len(table) == 1 + len(jax.tree.leaves(params))
    (embedding,) = [line for line in table if line.startswith("embed_VD")]
    size = 64 * model.width  # vocabulary over tensor, width over fsdp; sampling keeps the width
    assert embedding.endswith(f"{4 * size // 4:,} + {4 * size // 2:,}")
    assert "2 data x 2 fsdp x 2 tensor devices" in notes[0]
    assert "does not divide the 1 kv heads" in notes[1]


@dataclasses.dataclass(frozen=True)
class Device:
    """A fake device of some process."""

    id: int
    process_index: int


def test_devices_of_one_process_are_neighbours_however_they_are_numbered():
    devices = [Device(number, number // 2 % 2) for number in range(8)]  # as on a TPU pod
    mesh = make_mesh(devices, data=2, fsdp=2, tensor=2)
    assert [device.process_index for device in mesh.devices.flat] == [0] * 4 + [1] * 4
    assert [device.id for device in mesh.devices.flat] == [0, 1, 4, 5, 2, 3, 6, 7]


@pytest.mark.parametrize(
    ("count", "shape", "message"),
    [
        (1, (1, -1, 4), "mesh.tensor=4: it must divide the number of devices, 1; set "
                        "--config.mesh.tensor=1"),
        (6, (-1, 1, 4), "mesh.tensor=4: it must divide the number of devices, 6; set "
                        "--config.mesh.tensor=2"),
        (8, (-1, 3, 4), "mesh.fsdp=3, mesh.tensor=4: their product must divide the number of "
                        "devices, 8; set --config.mesh.fsdp=1 --config.mesh.tensor=4"),
        (8, (2, 1, 2), "mesh.data=2, mesh.fsdp=1, mesh.tensor=2: their product must be the number "
                       "of devices, 8; set one of them, and only one, to -1: it takes what"),
        (8, (-1, -1, 2), "mesh.data=-1, mesh.fsdp=-1, mesh.tensor=2: their product must be the "
                         "number of devices, 8; set one of them, and only one, to -1"),
    ],
)  # fmt: skip
def test_a_mesh_that_does_not_fit_the_devices_is_refused_with_a_remedy(count, shape, message):
    devices = [Device(number, 0) for number in range(count)]
    with pytest.raises(ValueError, match=f"^{re.escape(message)}"):
        make_mesh(devices, **dict(zip(MESH_AXES, shape, strict=True)))


def test_tensor_parallelism_across_processes_is_refused():
    devices = [Device(number, number // 2) for number in range(8)]
    with pytest.raises(ValueError, match="mesh.tensor=4: .*divide the 2 devices of each"):
        make_mesh(devices, tensor=4)

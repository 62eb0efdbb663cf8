"""The bridge: each device asks its own host about its own rows, once, in numpy."""

from __future__ import annotations

import threading
from functools import partial

import jax
import numpy as np
import pytest
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from rapo_jax.model.sharding import MESH_AXES, make_mesh, rows
from rapo_jax.rollout.bridge import host_call

ROWS = 16
DOUBLED = (jax.ShapeDtypeStruct((ROWS, 2), np.int32), jax.ShapeDtypeStruct((ROWS,), np.bool_))


class Doubling:
    """Doubles what it is asked and remembers who asked."""

    def __init__(self):
        self.asked: list[list[int]] = []
        self.kinds: set[type] = set()
        self._lock = threading.Lock()

    def __call__(self, row_B, value_B):
        with self._lock:
            self.asked.append(row_B.tolist())
            self.kinds |= {type(row_B), type(value_B)}
        return np.stack([2 * value_B, row_B], axis=1).astype(np.int32), value_B % 2 == 0


def ask(mesh, callback):
    """Answers for rows 0.. with values 100.., asked for in the middle of a program."""

    def program(row_B):
        doubled_B2, even_B = host_call(mesh, callback, DOUBLED, row_B, 100 + row_B)
        return doubled_B2 + 1, ~even_B

    spread = jax.device_put(np.arange(ROWS, dtype=np.int32), rows(mesh))
    return jax.jit(program)(spread)


def check(answer):
    row_B = np.arange(ROWS)
    np.testing.assert_array_equal(answer[0], np.stack([2 * (100 + row_B), row_B], axis=1) + 1)
    np.testing.assert_array_equal(answer[1], row_B % 2 == 1)


@pytest.mark.parametrize("devices", [1, 8])
def test_every_device_asks_about_its_own_rows_and_keeps_the_answers(devices):
    mesh, callback = make_mesh(jax.devices()[:devices]), Doubling()
    answer = ask(mesh, callback)
    check(answer)
    own = np.arange(ROWS).reshape(devices, -1).tolist()
    assert sorted(callback.asked) == own
    shard_rows = {shard.data.shape[0] for shard in answer[0].addressable_shards}
    assert shard_rows == {ROWS // devices}


def test_a_door_is_given_numpy_arrays():
    callback = Doubling()
    ask(make_mesh(jax.devices()[:1]), callback)
    assert callback.kinds == {np.ndarray}


def test_rows_replicated_over_the_tensor_axis_are_asked_for_once():
    devices = np.array(jax.devices()).reshape(4, 1, 2)
    mesh, callback = Mesh(devices, MESH_AXES, axis_types=(AxisType.Auto,) * 3), Doubling()
    check(ask(mesh, callback))
    assert sorted(callback.asked) == np.arange(ROWS).reshape(4, -1).tolist()


def test_a_program_asks_again_every_time_it_runs_and_is_compiled_once():
    mesh, callback, traced = make_mesh(jax.devices()[:2]), Doubling(), []
    result = jax.ShapeDtypeStruct((ROWS, 2), np.int32)

    def first(row_B, value_B):
        return callback(row_B, value_B)[0]

    def program(row_B):
        traced.append(True)
        call = partial(host_call, mesh, first, result)
        return call(row_B, call(row_B, row_B)[:, 0])[:, 0]

    compiled = jax.jit(program, in_shardings=NamedSharding(mesh, PartitionSpec(("data", "fsdp"))))
    for _ in range(2):
        four_times_B = compiled(np.arange(ROWS, dtype=np.int32))
        np.testing.assert_array_equal(four_times_B, 4 * np.arange(ROWS))
    assert len(traced) == 1
    assert len(callback.asked) == 2 * 2 * 2  # runs, calls, devices


def test_answers_cross_the_bridge_in_one_rank_as_a_tpu_demands():
    assert len({len(x.shape) for x in DOUBLED}) == 2
    program = partial(host_call, make_mesh(jax.devices()[:1]), Doubling(), DOUBLED)
    row_B = np.arange(ROWS, dtype=np.int32)
    jaxpr = jax.make_jaxpr(program)(row_B, 100 + row_B)
    (shard_map,) = (e for e in jaxpr.eqns if e.primitive.name == "shard_map")
    inner = shard_map.params["jaxpr"].eqns
    (callback,) = (e for e in inner if e.primitive.name == "io_callback")
    assert [x.aval.ndim for x in callback.outvars] == [2, 2]

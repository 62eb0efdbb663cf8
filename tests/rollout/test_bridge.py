"""The bridge: each shard of rows calls its own host with its own rows, once, in numpy."""

from __future__ import annotations

import threading
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rapo_jax.model.sharding import EVERYWHERE, ROWS, make_mesh, on_row_shards
from rapo_jax.rollout.bridge import host_call

COUNT = 16


class Doubling:
    """Doubles what it is asked and remembers who asked."""

    def __init__(self):
        self.asked: list[list[int]] = []
        self.kinds: set[type] = set()
        self._lock = threading.Lock()

    def __call__(self, request):
        row_B, value_B = request
        with self._lock:
            self.asked.append(row_B.tolist())
            self.kinds |= {type(row_B), type(value_B)}
        return np.stack([2 * value_B, row_B], axis=1).astype(np.int32), value_B % 2 == 0


def doubled(rows):
    shape = jax.ShapeDtypeStruct
    return shape((rows, 2), np.int32), shape((rows,), np.bool_)


def program(mesh, callback):
    """Answers for rows with values 100.. where needed, asked for in the middle of a program."""

    def shard(row_B, needed_B):
        call = partial(host_call, mesh, callback, doubled(len(row_B)), needed_B)
        doubled_B2, even_B = call((row_B, 100 + row_B))
        return doubled_B2 + 1, ~even_B

    return on_row_shards(mesh, shard, (ROWS, ROWS))


def ask(mesh, callback, needed_B=None):
    needed_B = np.ones(COUNT, bool) if needed_B is None else needed_B
    return jax.jit(program(mesh, callback))(np.arange(COUNT, dtype=np.int32), needed_B)


def check(answer, called_B=None):
    row_B = np.arange(COUNT)
    called_B = np.ones(COUNT, bool) if called_B is None else called_B
    doubled_B2 = np.stack([2 * (100 + row_B), row_B], axis=1) * called_B[:, None]
    np.testing.assert_array_equal(answer[0], doubled_B2 + 1)
    np.testing.assert_array_equal(answer[1], ~((row_B % 2 == 0) & called_B))


@pytest.mark.parametrize("devices", [1, 8])
def test_every_shard_asks_about_its_own_rows_and_keeps_the_answers(devices):
    mesh, callback = make_mesh(jax.devices()[:devices]), Doubling()
    answer = ask(mesh, callback)
    check(answer)
    assert sorted(callback.asked) == np.arange(COUNT).reshape(devices, -1).tolist()
    shard_rows = {shard.data.shape[0] for shard in answer[0].addressable_shards}
    assert shard_rows == {COUNT // devices}


def test_a_callback_is_given_numpy_arrays():
    callback = Doubling()
    ask(make_mesh(jax.devices()[:1]), callback)
    assert callback.kinds == {np.ndarray}


@pytest.mark.parametrize(("data", "fsdp", "tensor"), [(4, 1, 2), (1, 4, 2), (2, 1, 4)])
def test_rows_replicated_over_the_tensor_axis_are_asked_for_once(data, fsdp, tensor):
    mesh, callback = make_mesh(data=data, fsdp=fsdp, tensor=tensor), Doubling()
    check(ask(mesh, callback))
    assert sorted(callback.asked) == np.arange(COUNT).reshape(data * fsdp, -1).tolist()


@pytest.mark.parametrize("tensor", [1, 2])
def test_a_host_is_called_only_if_one_of_its_rows_needs_it(tensor):
    mesh, callback = make_mesh(tensor=tensor), Doubling()
    shard_rows = COUNT // (8 // tensor)
    needed_B = np.isin(np.arange(COUNT), (1, 6, 7))
    shards = {row // shard_rows for row in (1, 6, 7)}
    called_B = np.isin(np.arange(COUNT) // shard_rows, list(shards))
    check(ask(mesh, callback, needed_B), called_B)
    assert sorted(np.concatenate(callback.asked)) == np.flatnonzero(called_B).tolist()

    del callback.asked[:]
    check(ask(mesh, callback, np.zeros(COUNT, bool)), np.zeros(COUNT, bool))
    assert not callback.asked


def test_a_program_asks_again_every_time_it_runs_and_is_compiled_once():
    mesh, callback, traced = make_mesh(jax.devices()[:2]), Doubling(), []

    def first(request):
        return callback(request)[0]

    def shard(row_B):
        traced.append(True)
        needed_B = jnp.ones(len(row_B), bool)
        call = partial(host_call, mesh, first, doubled(len(row_B))[0], needed_B)
        return call((row_B, call((row_B, row_B))[:, 0]))[:, 0]

    compiled = jax.jit(on_row_shards(mesh, shard, (ROWS,)))
    for _ in range(2):
        four_times_B = compiled(np.arange(COUNT, dtype=np.int32))
        np.testing.assert_array_equal(four_times_B, 4 * np.arange(COUNT))
    assert len(traced) == 1
    assert len(callback.asked) == 2 * 2 * 2  # runs, calls, devices


@pytest.mark.parametrize("tensor", [1, 2])
def test_shards_do_not_wait_for_those_that_take_more_turns_or_a_slow_host(tensor):
    """The first shard's host answers once the last has had all its turns."""
    shards, last_is_done = 3, threading.Event()
    mesh = make_mesh(jax.devices()[: shards * tensor], tensor=tensor)
    turns_B = np.array([1, 4, 9], np.int32)
    waited = []

    def callback(request):
        row_B, turn_B = request
        if row_B[0] == 0:
            waited.append(last_is_done.wait(timeout=60))
        if row_B[0] == 2 and turn_B[0] == 9:
            last_is_done.set()
        return turn_B + row_B

    def shard(row_B, turns_B, step):
        def turn(carry):
            turn_B, sum_B = carry
            shape = jax.ShapeDtypeStruct(row_B.shape, np.int32)
            request = row_B, turn_B + step
            answer_B = host_call(mesh, callback, shape, turn_B < turns_B, request)
            return turn_B + step, sum_B + answer_B

        zero_B = jnp.zeros_like(row_B)
        return jax.lax.while_loop(lambda c: (c[0] < turns_B).any(), turn, (zero_B, zero_B))

    run = jax.jit(on_row_shards(mesh, shard, (ROWS, ROWS, EVERYWHERE)))
    turn_B, sum_B = run(np.arange(shards, dtype=np.int32), turns_B, np.int32(1))
    np.testing.assert_array_equal(turn_B, turns_B)
    np.testing.assert_array_equal(sum_B, turns_B * (turns_B + 1) // 2 + np.arange(3) * turns_B)
    assert waited == [True]


def equations(jaxpr):
    """Those of a jaxpr and of all within it."""
    for equation in jaxpr.eqns:
        yield equation
        for parameter in jax.tree.leaves(
            equation.params, is_leaf=lambda x: hasattr(x, "jaxpr") or hasattr(x, "eqns")
        ):
            inner = getattr(parameter, "jaxpr", parameter)
            if hasattr(inner, "eqns"):
                yield from equations(inner)


@pytest.mark.parametrize("tensor", [1, 2])
def test_answers_cross_the_bridge_in_one_rank_as_a_tpu_demands(tensor):
    assert len({len(x.shape) for x in doubled(COUNT)}) == 2
    mesh = make_mesh(jax.devices()[:2], tensor=tensor)
    row_B = np.arange(COUNT, dtype=np.int32)
    jaxpr = jax.make_jaxpr(program(mesh, Doubling()))(row_B, row_B > 0)
    (callback,) = (e for e in equations(jaxpr.jaxpr) if e.primitive.name == "io_callback")
    assert [x.aval.ndim for x in callback.outvars] == [2, 2]

"""Programs that call the host, kept by the compilation cache: whose functions they call."""

from __future__ import annotations

import logging

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax._src import compiler
from jax.experimental import io_callback
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

from rapo_jax.sampling.program_cache import KNOWN, SUFFIX, keep_programs_with_callbacks
from rapo_jax.types import Source
from tests.compiling import cached_in

ITS_OWN_NAMES = tuple(map(int, jax.__version__.split(".")[:2])) < (0, 11)


@pytest.fixture
def hits():
    """Names of what was looked up in the compilation cache: 'cache_hits' and 'cache_misses'."""
    found = []

    def listen(event, **_):
        if event.startswith("/jax/compilation_cache/cache_"):
            found.append(event.rsplit("/", 1)[1])

    jax.monitoring.register_event_listener(listen)
    yield found
    jax.monitoring.unregister_event_listener(listen)


def on_host(x, function):
    return io_callback(function, jax.ShapeDtypeStruct(x.shape, x.dtype), x, ordered=False)


def add_then_multiply(number, *, devices):
    """A program with two callbacks, mapped over devices: x + number, and times number if x[0] > 2.

    A new function each time: jax's caches within the process know nothing of it.
    """

    def add(x):
        return np.asarray(x) + np.float32(number)

    def multiply(x):
        return np.asarray(x) * np.float32(number)

    def program(x):
        x = on_host(x, add)
        return jax.lax.cond(x[0] > 2, lambda x: on_host(x, multiply), lambda x: x, x)

    mesh = jax.make_mesh((devices,), ("rows",), (AxisType.Auto,), devices=jax.devices()[:devices])
    return jax.jit(
        jax.shard_map(program, mesh=mesh, in_specs=P("rows"), out_specs=P("rows"), check_vma=False)
    )


@pytest.mark.parametrize("devices", [1, 4])
def test_a_program_from_the_cache_calls_the_functions_of_the_process_that_loads_it(
    tmp_path, hits, devices
):
    x = np.arange(devices, dtype=np.float32)
    with cached_in(tmp_path):
        compiled = add_then_multiply(1, devices=devices)(x)
        assert set(hits) == {"cache_misses"}
        hits.clear()
        loaded = add_then_multiply(2, devices=devices)(x)
        assert set(hits) == {"cache_hits"}
    assert compiled.tolist() == [1, 2, 3, 4][:devices]  # 3 and 4 times 1
    assert loaded.tolist() == [2, 6, 8, 10][:devices]  # 0 + 2 is not above 2


def test_what_a_loaded_program_s_callback_raises_is_raised(tmp_path, hits):
    def program(function):
        return jax.jit(lambda x: on_host(x, function) + 1)

    def refuse(x):
        raise ValueError("no such row")

    with cached_in(tmp_path):
        program(np.asarray)(jnp.ones(2))
        hits.clear()
        with pytest.raises(jax.errors.JaxRuntimeError, match="no such row"):
            program(refuse)(jnp.ones(2)).block_until_ready()
        assert "cache_hits" in hits


@pytest.mark.skipif(not ITS_OWN_NAMES, reason="jax looks for them itself")
def test_programs_with_callbacks_have_names_that_no_other_reader_looks_for(tmp_path):
    with cached_in(tmp_path) as names:
        jax.jit(lambda x: x * 5 - 1).lower(1.0).compile()
        assert names() and not any(SUFFIX in name for name in names())
        before = names()
        jax.jit(lambda x: on_host(x, np.asarray)).lower(1.0).compile()
        assert len(names() - before) == 1
        assert all(SUFFIX in name for name in names() - before)


def test_a_broken_entry_is_compiled_again(tmp_path, recwarn):
    with cached_in(tmp_path) as names:
        jax.jit(lambda x: on_host(x, np.asarray) * 7).lower(1.0).compile()
        for name in names():
            (tmp_path / name).write_bytes(b"no program")
        assert jax.jit(lambda x: on_host(x, np.negative) * 7)(1.0) == -7
    assert any("persistent compilation cache" in str(w.message) for w in recwarn)


def test_a_rollout_from_the_cache_gives_the_tape_of_a_compiled_one(
    tmp_path, hits, make_sampler, house
):
    def tape():
        playing = make_sampler(devices=2, driver="jit")
        return playing.sampler.sample(
            playing.params,
            jax.random.key(3),
            house.asked,
            group_size=4,
            n_hybrid=2,
            temperature=1.0,
            probability=0.7,
        )

    with cached_in(tmp_path) as names:
        compiled = tape()
        assert any("in_program" in name for name in names())
        hits.clear()
        loaded = tape()
        assert "cache_misses" not in hits
    assert (compiled.source_BT == Source.RETRIEVED).any()
    for left, right in zip(*map(jax.tree.leaves, (compiled, loaded)), strict=True):
        np.testing.assert_array_equal(left, right)


def test_a_jax_that_works_in_another_way_is_left_alone_with_one_line(monkeypatch, caplog):
    def another(backend, computation):
        raise AssertionError("not called")

    for name in KNOWN:
        monkeypatch.setattr(compiler, name, another)
    with caplog.at_level(logging.WARNING):
        assert not keep_programs_with_callbacks()
    assert [compiler._cache_read, compiler._cache_write] == [another, another]
    (line,) = caplog.messages
    assert f"jax {jax.__version__}" in line and "compiled at every start" in line


def test_a_jax_that_keeps_them_itself_is_left_alone(monkeypatch, caplog):
    def read(module_name, cache_key, options, backend, devices, host_callbacks):
        raise AssertionError("not called")

    def get(*arguments):
        raise AssertionError("not called")

    monkeypatch.setattr(compiler, "_cache_read", read)
    monkeypatch.setattr(compiler, "compile_or_get_cached", get)
    with caplog.at_level(logging.WARNING):
        assert keep_programs_with_callbacks()
    assert (compiler._cache_read, compiler.compile_or_get_cached) == (read, get)
    assert caplog.messages == []


def test_asking_twice_changes_nothing():
    before = [getattr(compiler, name) for name in KNOWN]
    assert keep_programs_with_callbacks()
    assert [getattr(compiler, name) for name in KNOWN] == before

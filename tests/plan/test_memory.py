"""A run that cannot fit into the memory of its devices is refused with the key to change."""

from __future__ import annotations

import dataclasses
import math
import re
from types import SimpleNamespace

import jax
import pytest

from configs import qwen7b
from rapo_jax.config.read import read_settings
from rapo_jax.model.sharding import make_mesh
from rapo_jax.plan.memory import check_memory, device_memory, held_bytes, host_memory
from rapo_jax.plan.models import planned_model

SETTINGS = read_settings(qwen7b.get_config().to_dict() | {"stages": ("plan",)})
MODEL = planned_model(SETTINGS.model)
PARAMETERS = 7.62e9
A_TOKEN = 2 * 4 * 128 * 2 * 28
"""Bytes of keys and values: 4 key-value heads of 128 numbers in bfloat16, 28 layers."""


def check(available, *, training=True, evaluation_rows=0, **rollout):
    settings = dataclasses.replace(
        SETTINGS, rollout=dataclasses.replace(SETTINGS.rollout, **rollout)
    )
    check_memory(
        settings,
        MODEL,
        make_mesh(data=1, fsdp=8, tensor=1),
        training=training,
        evaluation_rows=evaluation_rows,
        available=available,
    )


def test_weights_moments_and_one_gradient_are_counted_on_each_device():
    found = held_bytes(SETTINGS, MODEL, make_mesh(data=1, fsdp=8, tensor=1), training=True)
    # In training 4 bytes of weights, 8 of moments, 4 of a gradient, split over eight devices; the
    # sampling weights are bfloat16 and whole on each.
    assert found.weights == pytest.approx(12 * PARAMETERS / 8 + 2 * PARAMETERS, rel=0.01)


def held(*, training=True, fsdp=8, rl=None, **rollout):
    s = dataclasses.replace(
        SETTINGS,
        rollout=dataclasses.replace(SETTINGS.rollout, **rollout),
        rl=dataclasses.replace(SETTINGS.rl, **(rl or {})),
    )
    return held_bytes(s, MODEL, make_mesh(jax.devices()[:fsdp], data=1, fsdp=fsdp, tensor=1),
                      training=training)  # fmt: skip


def test_the_rows_of_a_device_hold_their_tapes_and_the_prompts_of_its_questions():
    r = SETTINGS.rollout
    tapes = 512 / 8 * (r.max_tokens + 256 + r.max_tokens) * 5 * 4  # written and returned
    assert held().rows == tapes + 32 / 8 * r.prompt_tokens * A_TOKEN


def test_a_step_needs_the_more_of_its_sampling_and_its_update():
    sampling = held(slots=512)
    state = sampling.total - sampling.cache - sampling.rows  # with the copy
    assert state == sampling.weights
    # on one device the gradients, 4 bytes a weight, are more than the copy, a cache and its rows
    update = held(fsdp=1, questions=1, group_size=1)
    assert update.total == update.weights == pytest.approx(16 * PARAMETERS, rel=0.01)


def test_no_more_slots_are_held_than_a_device_has_rows():
    assert held(slots=8 * 64).cache == held(slots=8 * 65).cache == held(slots=0).cache
    assert held(slots=8 * 32).cache == held(slots=0).cache / 2


def test_sampling_alone_holds_no_moments_no_gradients_and_no_first_weights():
    kl = {"kl": 0.1}
    weights = 4 * PARAMETERS / 8 + 2 * PARAMETERS
    assert held(training=False, rl=kl).weights == pytest.approx(weights, rel=0.01)
    first = held(rl=kl).weights - held().weights
    assert first == pytest.approx(4 * PARAMETERS / 8, rel=0.01)


def test_a_refusal_counts_no_more_slots_than_rows():
    with pytest.raises(ValueError, match=r"^rollout\.slots=600: .* cache of 512 slots"):
        check(40e9, slots=600)


def test_a_batch_of_evaluation_has_one_row_for_each_question():
    rows = 256
    tapes = rows / 8 * 2 * SETTINGS.rollout.max_tokens * 20
    prompts = rows / 8 * SETTINGS.rollout.prompt_tokens * A_TOKEN
    cache = SETTINGS.rollout.max_tokens * A_TOKEN  # of a slot on each device
    weights = 4 * PARAMETERS / 8 + 2 * PARAMETERS
    most = 1.05 * (weights + cache + prompts + tapes)
    check(most, training=False, evaluation_rows=rows, slots=8)


def test_a_model_too_large_is_refused_with_more_devices_or_adapters_as_the_remedy():
    with pytest.raises(ValueError, match=r"^mesh.fsdp=8: training needs at least .* 26\.7 GB of"):
        check(16e9)


def test_too_many_slots_are_refused_with_a_number_that_fits():
    with pytest.raises(ValueError, match=r"^rollout\.slots=512: .* cache of 512 slots") as refused:
        check(40e9, slots=512)
    fits = int(re.search(r"set it to (\d+) or less", str(refused.value))[1])
    check(40e9, slots=fits)
    with pytest.raises(ValueError, match=f"set it to {fits} or less"):
        check(40e9, slots=fits + 8)


def test_without_slots_the_rows_of_an_evaluation_are_its_slots():
    rows = 256
    positions = SETTINGS.rollout.max_tokens
    weights = 4 * PARAMETERS / 8 + 2 * PARAMETERS
    cache = rows / 8 * positions * A_TOKEN
    check(1.3 * (weights + cache), training=False, evaluation_rows=rows, slots=0)
    with pytest.raises(ValueError, match=r"^rollout.slots=0: evaluation needs .* of 256 slots"):
        check(weights + 0.9 * cache, training=False, evaluation_rows=rows, slots=0)


def test_where_fewer_slots_would_not_help_the_rows_are_named():
    with pytest.raises(ValueError, match=r"^rollout.questions=65536: .* tapes of all rows"):
        check(40e9, questions=65_536, slots=8)


def test_what_fits_is_not_refused():
    check(80e9, evaluation_rows=256)


def test_the_memory_of_a_host_is_what_is_free_or_what_its_container_may_take(tmp_path):
    proc = tmp_path / "meminfo"
    proc.write_text("MemTotal: 2000 kB\nMemAvailable: 1000 kB\n")
    assert host_memory(proc, tmp_path) == 1_024_000
    (tmp_path / "memory.current").write_text("300\n")
    (tmp_path / "memory.max").write_text("1300\n")
    assert host_memory(proc, tmp_path) == 1000
    stat = "anon 90\nactive_file 120\ninactive_file 80\nslab 10\n"  # pages of files are given up
    (tmp_path / "memory.stat").write_text(stat)
    assert host_memory(proc, tmp_path) == 1200
    (tmp_path / "memory.max").write_text("max\n")
    assert host_memory(proc, tmp_path) == 1_024_000
    assert host_memory(tmp_path / "none", tmp_path / "none") == float("inf")


def test_cpu_devices_share_the_memory_of_their_host():
    assert device_memory(make_mesh()) == pytest.approx(host_memory() / 8, rel=0.5)


@pytest.mark.parametrize(
    ("stats", "memory"), [({"bytes_limit": 7}, 7), ({}, math.inf), (None, math.inf)]
)
def test_an_accelerator_is_never_measured_by_the_memory_of_its_host(stats, memory):
    device = SimpleNamespace(platform="gpu", memory_stats=lambda: stats)
    assert device_memory(SimpleNamespace(local_devices=[device])) == memory

"""Bytes and work of one chip, compared with numbers computed by hand."""

from __future__ import annotations

import dataclasses

import pytest

from configs import default, llama8b, qwen3b, qwen7b
from rapo_jax.config.read import read_settings
from rapo_jax.plan.arithmetic import Way, bytes_on, cache_slots, micro_rows, shape_on
from rapo_jax.plan.chips import slices
from rapo_jax.plan.estimate import estimate, rows_at_once, work_on
from rapo_jax.plan.models import planned_model


def settings_of(config):
    return read_settings(config.get_config().to_dict() | {"stages": ("plan",)})


@pytest.fixture(scope="module")
def qwen():
    s = settings_of(qwen7b)
    return s, planned_model(s.model)


@pytest.fixture(scope="module")
def adapted():
    c = qwen7b.get_config()
    c.model.lora.rank = 32
    s = read_settings(c.to_dict() | {"stages": ("plan",)})
    return s, planned_model(s.model)


ADAPTERS_7B = 28 * 32 * (2 * (3584 + 3584) + 2 * (3584 + 512) + 3 * (3584 + 18_944))
"""Layers x rank x both sides of q and o, of k and v, of gate, up and down."""


def parameters_of(m):
    heads, kv = m.heads * m.head_width, m.kv_heads * m.head_width
    biases = heads + 2 * kv if m.qkv_bias else 0
    layer = 2 * m.width * (heads + kv) + biases + 3 * m.width * m.ffn + 2 * m.width
    return m.layers * layer + m.width + m.vocab * m.width * (1 if m.tied else 2)


@pytest.mark.parametrize(("config", "billions"), [(qwen3b, 3.09), (qwen7b, 7.62), (llama8b, 8.03)])
def test_published_shapes_have_the_published_number_of_parameters(config, billions):
    s = settings_of(config)
    model = planned_model(s.model)
    assert parameters_of(model) / 1e9 == pytest.approx(billions, abs=0.01)
    assert shape_on(model, fsdp=1, tensor=1).trained == parameters_of(model)


def test_one_chip_holds_all_weights_moments_and_both_gradients(qwen):
    s, model = qwen
    way = Way(fsdp=1, tensor=1, chunks=8, remat="full")
    found = bytes_on(s, model, shape_on(model, fsdp=1, tensor=1), way, plain=False)
    count = parameters_of(model)
    assert (found.parameters, found.optimizer, found.gradients) == (4 * count, 8 * count, 8 * count)
    scales = (2 * model.layers + 1) * model.width  # norms stay float32
    assert found.copy == 2 * count + 2 * scales


def test_adapters_alone_have_moments_and_gradients_and_the_base_is_held_in_bfloat16(adapted):
    s, model = adapted
    way = Way(fsdp=1, tensor=1, chunks=32, remat="full")
    found = bytes_on(s, model, shape_on(model, fsdp=1, tensor=1), way, plain=False)
    base = 2 * parameters_of(model) + 2 * (2 * model.layers + 1) * model.width
    assert found.parameters == base + 4 * ADAPTERS_7B
    assert (found.optimizer, found.gradients) == (8 * ADAPTERS_7B, 8 * ADAPTERS_7B)
    assert found.copy == base + 2 * ADAPTERS_7B
    merged = dataclasses.replace(model, lora=dataclasses.replace(model.lora, merge=True))
    assert shape_on(merged, fsdp=1, tensor=1).sampled == base


def test_an_update_computes_no_gradient_of_a_frozen_matrix(adapted):
    s, model = adapted
    chips = slices("h200x8")[0]
    work = work_on(s, model, shape_on(model, fsdp=8, tensor=1), Way(8, 1, 1, "full"), chips)
    tokens = 512 * 5632 / 8
    matrix = parameters_of(model) - model.vocab * model.width
    attention = 4 * model.heads * model.head_width * model.layers * 5632 / 2
    # forward twice; back through a frozen matrix once, through an adapter and attention twice
    a_token = 2 * matrix * 3 + (2 * ADAPTERS_7B + attention) * 4
    assert work.update_flops == pytest.approx(tokens * a_token, rel=1e-6)


@pytest.mark.parametrize("topology", ["h100x1", "h200x1"])
def test_adapters_of_qwen_7b_train_on_one_gpu(adapted, topology):
    found = estimate(*adapted, slices(topology)[0])
    assert found is not None and found.fits


def test_a_cache_holds_keys_and_values_of_every_slot_of_one_chunk_of_questions(qwen):
    s, model = qwen
    slots = 5632 + 1536  # a row, and room for the widest span, the prompt
    assert cache_slots(s) == slots
    way = Way(fsdp=16, tensor=4, chunks=2, remat="full")
    found = bytes_on(s, model, shape_on(model, fsdp=16, tensor=4), way, plain=False)
    rows_here, kv_heads_here = 32 * 16 / 2 / 16, 4 / 4
    assert found.cache == rows_here * slots * 2 * kv_heads_here * 128 * 2 * 28


def test_a_span_is_read_with_the_scores_of_one_chunk_of_slots(qwen):
    s, model = qwen
    shape, way = shape_on(model, fsdp=16, tensor=4), Way(16, 4, 2, "full")

    def rollout(chunk):
        r = dataclasses.replace(s.rollout, absorb_chunk=chunk)
        return bytes_on(dataclasses.replace(s, rollout=r), model, shape, way, plain=False).rollout

    assert s.rollout.absorb_chunk == 256 and s.rollout.retrieved_tokens == 1024
    rows_here, heads_here, slots = 16, 28 / 4, 5632 + 1536
    assert rollout(256) > rows_here * 256 * heads_here * slots * (4 + 4 + 2)
    assert rollout(1024) == rollout(4096) == 4 * rollout(256)  # no span is longer


def test_the_copy_is_split_over_tensor_alone_and_the_moments_over_both(qwen):
    _, model = qwen
    whole, cut = (shape_on(model, fsdp=f, tensor=t) for f, t in ((1, 1), (16, 4)))
    assert cut.trained == pytest.approx(whole.trained / 64, rel=0.01)
    assert cut.sampled == pytest.approx(whole.sampled / 4, rel=0.001)


def test_a_micro_batch_has_a_row_for_every_chip(qwen):
    s, _ = qwen
    assert micro_rows(s, 4) == 8  # 65,536 / 5632 = 11, of which 8 divide by 4
    assert micro_rows(s, 32) == 32


def test_more_remat_keeps_less(qwen):
    s, model = qwen
    shape = shape_on(model, fsdp=8, tensor=1)

    def update(remat, plain):
        return bytes_on(s, model, shape, Way(8, 1, 1, remat), plain=plain).update

    sizes = [update(remat, True) for remat in ("none", "dots", "dots_no_batch", "full")]
    assert sizes == sorted(sizes, reverse=True) and len(set(sizes)) == 4
    scores = 28 * 5632 * 5632  # of one row of one layer, that a kernel never writes
    assert update("none", True) - update("none", False) >= 28 * scores * (4 + 2)


def test_an_update_multiplies_every_token_with_every_weight_eight_times(qwen):
    s, model = qwen
    chips = slices("v5p:2x2x4")[0]
    shape = shape_on(model, fsdp=16, tensor=1)
    work = work_on(s, model, shape, Way(16, 1, 1, "full"), chips)
    tokens = 512 * 5632 / 16
    matrix = parameters_of(model) - model.vocab * model.width  # the embedding is looked up
    attention = 4 * model.heads * model.head_width * model.layers * 5632 / 2
    # forward, forward again, and twice as much backward: 4 x 2 a weight and token
    assert work.update_flops == pytest.approx(4 * tokens * (2 * matrix + attention), rel=1e-6)


@pytest.mark.parametrize("topology", ["v5e:8x8", "v5p:2x2x4", "h100x8"])
def test_the_paper_s_batch_of_qwen_7b_fits(qwen, topology):
    found = estimate(*qwen, slices(topology)[0])
    assert found is not None and found.fits
    assert found.bytes.peak <= found.slice.usable
    assert rows_at_once(qwen[0], found) >= 512 // found.way.chunks


def test_qwen_3b_fits_one_h200():
    s = settings_of(qwen3b)
    found = estimate(s, planned_model(s.model), slices("h200x1")[0])
    assert found is not None and found.fits and found.way.chunks > 1


def test_qwen_7b_does_not_fit_one_chip(qwen):
    found = estimate(*qwen, slices("h100x1")[0])
    assert found is not None and not found.fits


def test_more_chips_than_questions_have_no_way(qwen):
    assert estimate(*qwen, slices("v5e:16x16")[0]) is None


def test_a_way_is_printed_as_flags(qwen):
    flags = Way(16, 4, 2, "full").flags.split()
    assert "--config.mesh.fsdp=16" in flags and "--config.rollout.chunks=2" in flags


def test_a_missing_folder_must_have_the_name_of_a_published_model():
    base = read_settings(default.get_config().to_dict()).model
    with pytest.raises(ValueError, match="model.folder='x/Mine': .*Qwen2.5-7B"):
        planned_model(dataclasses.replace(base, folder="x/Mine"))
    with pytest.raises(ValueError, match="model.vocab=0"):
        planned_model(base)

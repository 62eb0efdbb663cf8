"""Bytes and work of one chip, compared with numbers computed by hand."""

from __future__ import annotations

import dataclasses

import pytest

from configs import default, llama8b, qwen3b, qwen7b
from rapo_jax.config.read import read_settings
from rapo_jax.model.attention import Choice
from rapo_jax.plan.arithmetic import bytes_on, micro_rows, micro_shapes
from rapo_jax.plan.chips import slices
from rapo_jax.plan.estimate import Estimate, estimate, largest_slots, splits_on, work_on
from rapo_jax.plan.models import planned_model
from rapo_jax.plan.shapes import Split, shape_on

KERNEL = Choice("cudnn", "cudnn", "")
PAGED = Choice("splash", "paged", "")
PLAIN = Choice("plain", "blocks", "")


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
    split = Split(fsdp=1, tensor=1, slots=64, remat="full")
    found = bytes_on(s, model, shape_on(model, fsdp=1, tensor=1), split, KERNEL)
    count = parameters_of(model)
    assert (found.parameters, found.optimizer, found.gradients) == (4 * count, 8 * count, 8 * count)
    scales = (2 * model.layers + 1) * model.width  # norms stay float32
    assert found.copy == 2 * count + 2 * scales


def test_adapters_alone_have_moments_and_gradients_and_the_base_is_held_in_bfloat16(adapted):
    s, model = adapted
    split = Split(fsdp=1, tensor=1, slots=16, remat="full")
    found = bytes_on(s, model, shape_on(model, fsdp=1, tensor=1), split, KERNEL)
    base = 2 * parameters_of(model) + 2 * (2 * model.layers + 1) * model.width
    assert found.parameters == base + 4 * ADAPTERS_7B
    assert (found.optimizer, found.gradients) == (8 * ADAPTERS_7B, 8 * ADAPTERS_7B)
    assert found.copy == base + 2 * ADAPTERS_7B
    merged = dataclasses.replace(model, lora=dataclasses.replace(model.lora, merge=True))
    assert shape_on(merged, fsdp=1, tensor=1).sampled == base


def test_an_update_computes_no_gradient_of_a_frozen_matrix(adapted):
    s, model = adapted
    chips = slices("h200x8")[0]
    work = work_on(s, model, shape_on(model, fsdp=8, tensor=1), Split(8, 1, 1, "full"), chips)
    tokens = 512 * 5632 / 8
    matrix = parameters_of(model) - model.vocab * model.width
    attention = 4 * model.heads * model.head_width * model.layers * 5632 / 2
    # forward twice; back through a frozen matrix once, through an adapter and attention twice
    a_token = 2 * matrix * 3 + (2 * ADAPTERS_7B + attention) * 4
    assert work.update_flops == pytest.approx(tokens * a_token, rel=1e-6)


@pytest.mark.parametrize(("topology", "tokens"), [("h100x1", 32_768), ("h200x1", 65_536)])
def test_adapters_of_qwen_7b_train_on_one_gpu(adapted, topology, tokens):
    s, model = adapted
    s = dataclasses.replace(s, rl=dataclasses.replace(s.rl, micro_tokens=tokens))
    found = estimate(s, model, slices(topology)[0])
    assert found is not None and found.fits


def test_a_cache_holds_keys_and_values_of_whole_blocks_of_every_slot_and_of_each_prompt(qwen):
    s, model = qwen
    split = Split(fsdp=16, tensor=4, slots=8, remat="full")
    found = bytes_on(s, model, shape_on(model, fsdp=16, tensor=4), split, KERNEL)
    positions = 46 * 128  # 5632 of a row and 256 of a chunk
    kv_heads_here = 4 / 4
    a_token = 2 * kv_heads_here * 128 * 2 * 28
    assert found.cache == 8 * positions * a_token
    assert found.prompts == 32 / 16 * 1536 * a_token
    s = dataclasses.replace(s, rollout=dataclasses.replace(s.rollout, absorb_chunk=1))
    found = bytes_on(s, model, shape_on(model, fsdp=16, tensor=4), split, KERNEL)
    assert found.cache == 8 * 45 * 128 * a_token  # 5633
    s = dataclasses.replace(s, rollout=dataclasses.replace(s.rollout, absorb_chunk=9999))
    found = bytes_on(s, model, shape_on(model, fsdp=16, tensor=4), split, KERNEL)
    assert found.cache == 8 * 56 * 128 * a_token  # no longer than a result and a trace, 512 + 1024


def test_a_cache_of_a_tpu_has_pages_of_512_positions(qwen):
    s, model = qwen
    shape, split = shape_on(model, fsdp=16, tensor=4), Split(16, 4, slots=8, remat="full")
    found = bytes_on(s, model, shape, split, PAGED)
    assert found.cache == 8 * 12 * 512 * 2 * (4 / 4) * 128 * 2 * 28  # 5632 + 256 positions


def test_a_kernel_stores_a_head_on_each_chip_where_the_tensor_axis_does_not_divide_them():
    s = settings_of(qwen3b)
    model, split = planned_model(s.model), Split(2, 4, slots=1, remat="full")
    shape = shape_on(model, fsdp=2, tensor=4)
    a_head = 2 * 128 * 2 * 36 * 5888
    kernel, plain = (bytes_on(s, model, shape, split, each) for each in (KERNEL, PLAIN))
    assert (kernel.cache, plain.cache) == (a_head, 2 * a_head)  # of two kv heads
    assert 2 * kernel.prompts == plain.prompts


def rollout_bytes(qwen, *, slots, attention=KERNEL, **keys):
    s, model = qwen
    s = dataclasses.replace(s, rollout=dataclasses.replace(s.rollout, **keys))
    shape = shape_on(model, fsdp=16, tensor=4)
    return bytes_on(s, model, shape, Split(16, 4, slots, "full"), attention).rollout


def test_tapes_are_held_of_all_rows_whatever_the_slots(qwen):
    tapes = 32 * (5632 + 256 + 5632) * 5 * 4  # 512 / 16 rows, written and returned
    both = [rollout_bytes(qwen, slots=n, prompt_tokens=1, absorb_chunk=256) for n in (8, 16)]
    assert tapes < both[0] == both[1]  # a chunk of one row takes more than a tick


def test_a_tick_writes_the_logits_of_its_slots_and_a_chunk_those_of_nothing(qwen):
    ticks = [rollout_bytes(qwen, slots=n, prompt_tokens=1, absorb_chunk=1) for n in (16, 32)]
    assert ticks[1] - ticks[0] == 16 * 152_064 / 4 * 3 * 4
    chunks = [rollout_bytes(qwen, slots=1, prompt_tokens=1, absorb_chunk=n) for n in (256, 512)]
    scores = 28 / 4 * 128 * (4 + 4 + 2)  # of a query and one block of the cache
    assert chunks[1] - chunks[0] > 256 * scores


def test_prompts_write_their_scores_where_no_kernel_keeps_them(qwen):
    scores = 2 * 28 / 4 * 1536 * 1536 * (4 + 4 + 2)
    kernel, plain = (rollout_bytes(qwen, slots=1, attention=each) for each in (KERNEL, PLAIN))
    assert plain - kernel == scores


def test_slots_are_powers_of_two_up_to_the_rows_of_a_shard(qwen):
    s, model = qwen
    s = dataclasses.replace(s, rollout=dataclasses.replace(s.rollout, questions=3))
    splits = splits_on(s, model, slices("h100x1")[0])
    assert [split.slots for split in splits] == [1, 2, 4, 8, 16, 32, 48]


def test_more_slots_take_less_time_until_a_tick_computes_more_than_it_reads(qwen):
    s, model = qwen
    chips, shape = slices("h100x8")[0], shape_on(model, fsdp=2, tensor=4)
    one, two = (work_on(s, model, shape, Split(2, 4, n, "full"), chips) for n in (1, 2))
    ticks, chunks = 256 * 4096, 256 * 3 * 6  # of 256 of (512 + 1024) tokens, one row each
    attended = 5632 / 2 * 2 * 1 * 128 * 2 * 28
    tick, two_rows = ((shape.sampled + n * attended) / 3350e9 for n in (1, 2))
    assert one.rollout_seconds > ticks * tick + chunks * tick
    saved = one.rollout_seconds - two.rollout_seconds
    assert saved == pytest.approx(ticks * tick - ticks / 2 * two_rows, rel=1e-6)
    assert one.rollout_flops == two.rollout_flops and one.rollout_sent == two.rollout_sent


def test_the_most_slots_are_those_whose_rollout_fits(qwen):
    s, model = qwen
    chips, shape = slices("h100x4")[0], shape_on(model, fsdp=1, tensor=4)

    def of(slots):
        split = Split(1, 4, slots, "full")
        needed = bytes_on(s, model, shape, split, KERNEL)
        return Estimate(chips, split, needed, work_on(s, model, shape, split, chips))

    most = largest_slots(s, model, of(1))
    assert 256 < most < 512
    assert of(most).bytes.rollout_peak <= chips.usable < of(most + 1).bytes.rollout_peak
    assert largest_slots(s, model, of(1)._replace(slice=slices("v5e:1x1")[0])) == 0


def test_the_copy_is_split_over_tensor_alone_and_the_moments_over_both(qwen):
    _, model = qwen
    whole, cut = (shape_on(model, fsdp=f, tensor=t) for f, t in ((1, 1), (16, 4)))
    assert cut.trained == pytest.approx(whole.trained / 64, rel=0.01)
    assert cut.sampled == pytest.approx(whole.sampled / 4, rel=0.001)


def test_a_micro_batch_has_a_row_for_every_chip(qwen):
    s, _ = qwen
    assert micro_rows(s, 4) == 8  # 65,536 / 5632 = 11, of which 8 divide by 4
    assert micro_rows(s, 32) == 32


def test_the_largest_micro_batch_counts_and_not_the_widest(qwen):
    s, model = qwen
    one = dataclasses.replace(s, rl=dataclasses.replace(s.rl, buckets=s.rl.buckets[-1:]))
    assert micro_shapes(s, 8)[512] == 128 and micro_rows(s, 8) == 8  # 8192 and 5632 a chip
    shape, split = shape_on(model, fsdp=8, tensor=1), Split(8, 1, 1, "full")
    found = bytes_on(s, model, shape, split, KERNEL)
    hidden = model.layers * (8192 - 5632) * model.width * 2  # what `full` keeps
    narrow = dataclasses.replace(one.rl, micro_tokens=8 * 5632)
    widest = bytes_on(dataclasses.replace(one, rl=narrow), model, shape, split, KERNEL)
    assert found.update > widest.update + hidden


def test_a_kl_penalty_holds_the_first_weights_and_reads_the_tokens_once_more(qwen, adapted):
    for s, model in (qwen, adapted):
        shape, split = shape_on(model, fsdp=8, tensor=1), Split(8, 1, 1, "full")
        with_kl = dataclasses.replace(s, rl=dataclasses.replace(s.rl, kl=0.001))
        plain, more = (bytes_on(each, model, shape, split, KERNEL) for each in (s, with_kl))
        first = 4 * shape.trained  # float32; a frozen base stays what it was
        assert more.update_peak - plain.update_peak == first
        assert more.rollout_peak - plain.rollout_peak == first
    s, model = qwen
    with_kl = dataclasses.replace(s, rl=dataclasses.replace(s.rl, kl=0.001))
    chips, shape = slices("h100x8")[0], shape_on(model, fsdp=8, tensor=1)
    one, both = (
        work_on(each, model, shape, Split(8, 1, 1, "none"), chips).update_flops
        for each in (s, with_kl)
    )
    assert both / one == pytest.approx(4 / 3)  # a forward pass beside one and a backward pass


def test_more_remat_keeps_less(qwen):
    s, model = qwen
    shape = shape_on(model, fsdp=8, tensor=1)

    def update(remat, attention):
        return bytes_on(s, model, shape, Split(8, 1, 1, remat), attention).update

    sizes = [update(remat, PLAIN) for remat in ("none", "dots", "dots_no_batch", "full")]
    assert sizes == sorted(sizes, reverse=True) and len(set(sizes)) == 4
    scores = 28 * 5632 * 5632  # of one row of one layer, that a kernel never writes
    assert update("none", PLAIN) - update("none", KERNEL) >= 28 * scores * (4 + 2)


def test_an_update_multiplies_every_token_with_every_weight_eight_times(qwen):
    s, model = qwen
    chips = slices("v5p:2x2x4")[0]
    shape = shape_on(model, fsdp=16, tensor=1)
    work = work_on(s, model, shape, Split(16, 1, 1, "full"), chips)
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
    assert largest_slots(*qwen, found) >= found.split.all_slots


def test_qwen_3b_fits_one_h200():
    s = settings_of(qwen3b)
    found = estimate(s, planned_model(s.model), slices("h200x1")[0])
    assert found is not None and found.fits and found.split.slots < 512


def test_qwen_7b_does_not_fit_one_chip(qwen):
    found = estimate(*qwen, slices("h100x1")[0])
    assert found is not None and not found.fits


def test_more_chips_than_questions_have_no_way(qwen):
    assert estimate(*qwen, slices("v5e:16x16")[0]) is None


def test_a_way_is_printed_as_flags(qwen):
    flags = Split(16, 4, 2, "full").flags.split()
    assert "--config.mesh.fsdp=16" in flags and "--config.rollout.slots=32" in flags


def test_a_missing_folder_must_have_the_name_of_a_published_model():
    base = read_settings(default.get_config().to_dict()).model
    with pytest.raises(ValueError, match="model.folder='x/Mine': .*Qwen2.5-7B"):
        planned_model(dataclasses.replace(base, folder="x/Mine"))
    with pytest.raises(ValueError, match="model.vocab=0"):
        planned_model(base)

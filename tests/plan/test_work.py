"""FLOPs, bytes sent and seconds of a step of Qwen2.5-7B, compared with numbers computed by hand."""

from __future__ import annotations

import dataclasses

import pytest

from configs import qwen7b
from rapo_jax.config.read import read_settings
from rapo_jax.model.attention import choose
from rapo_jax.plan.arithmetic import bytes_on
from rapo_jax.plan.chips import slices
from rapo_jax.plan.estimate import estimate, splits_on, work_on
from rapo_jax.plan.models import planned_model
from rapo_jax.plan.shapes import Split, shape_on

LAYERS, WIDTH, HEADS, VOCAB, TOKENS, PROMPT = 28, 3584, 28, 152_064, 5632, 1536
A_LAYER = (
    2 * WIDTH * (HEADS + 4) * 128 + (HEADS + 8) * 128  # q and o, k and v, and three biases
    + 3 * WIDTH * 18_944 + 2 * WIDTH
)  # fmt: skip
MATRIX = LAYERS * A_LAYER + WIDTH + VOCAB * WIDTH
"""Parameters that a token is multiplied with: the embedding is looked up."""
ATTENTION = 4 * HEADS * 128 * LAYERS
"""FLOPs of a query and a key."""
H100 = slices("h100x8")[0]


def settings_of(*, rl=None, rank=0, **rollout):
    c = qwen7b.get_config()
    c.model.lora.rank = rank
    s = read_settings(c.to_dict() | {"stages": ("plan",)})
    return dataclasses.replace(
        s,
        rollout=dataclasses.replace(s.rollout, **rollout),
        rl=dataclasses.replace(s.rl, **(rl or {})),
    )


def work_of(s, split, *, merge=False, chips=H100):
    model = planned_model(s.model)
    model = dataclasses.replace(model, lora=dataclasses.replace(model.lora, merge=merge))
    shape = shape_on(model, fsdp=split.fsdp, tensor=split.tensor)
    return shape, work_on(s, model, shape, split, chips)


def tokens_of(rows, *, chunks, chunk=256, questions):
    """Sampled, read in chunks, and of prompts: 4 responses and 3 calls of a row."""
    return rows * 4 * 1024, rows * 3 * chunks * chunk, questions * PROMPT


def test_a_rollout_computes_each_sampled_read_and_prompt_token_once():
    # a result of 600 tokens and a trace of 1024 are 7 chunks of 256, the last one not full
    _, work = work_of(settings_of(observation_tokens=600), Split(8, 1, 4, "full"))
    sampled, read, prompts = tokens_of(64, chunks=7, questions=4)
    flops = (sampled + read) * (2 * MATRIX + ATTENTION * TOKENS / 2)
    flops += prompts * (2 * MATRIX + ATTENTION * PROMPT)
    assert work.rollout_flops == pytest.approx(flops, rel=1e-9)


def test_a_row_samples_no_more_than_its_longest_length_leaves():
    sampled = (4 * 1024, TOKENS - PROMPT - 1000)
    works = [work_of(settings_of(max_tokens=n), Split(8, 1, 4, "full"))[1]
             for n in (TOKENS, TOKENS - 1000)]  # fmt: skip
    _, read, prompts = tokens_of(64, chunks=6, questions=4)
    for work, each, longest in zip(works, sampled, (TOKENS, TOKENS - 1000), strict=True):
        flops = (64 * each + read) * (2 * MATRIX + ATTENTION * longest / 2)
        flops += prompts * (2 * MATRIX + ATTENTION * PROMPT)
        assert work.rollout_flops == pytest.approx(flops, rel=1e-9)


def test_without_hybrid_rollouts_no_trace_is_read():
    _, work = work_of(settings_of(n_hybrid=0), Split(8, 1, 4, "full"))
    sampled, read, prompts = tokens_of(64, chunks=2, questions=4)  # 512 of a result
    flops = (sampled + read) * (2 * MATRIX + ATTENTION * TOKENS / 2)
    flops += prompts * (2 * MATRIX + ATTENTION * PROMPT)
    assert work.rollout_flops == pytest.approx(flops, rel=1e-9)


def test_a_rollout_sums_each_layer_s_two_outputs_over_tensor_and_gathers_the_copy_over_fsdp():
    shape, work = work_of(settings_of(), Split(2, 4, 4, "full"))
    tokens = sum(tokens_of(256, chunks=6, questions=16))
    sums = tokens * 2 * LAYERS * WIDTH * 2 * (2 * 3 / 4)  # in bfloat16, in a ring of four
    assert work.rollout_sent == pytest.approx(sums + shape.sampled / 2, rel=1e-9)
    _, whole = work_of(settings_of(), Split(8, 1, 4, "full"))
    copy = 2 * (MATRIX + VOCAB * WIDTH)
    assert whole.rollout_sent == pytest.approx(copy * 7 / 8, rel=1e-4)  # norms are float32


def test_a_rollout_takes_its_ticks_its_chunks_its_prompts_and_what_it_sends():
    slots, a_position = 4, 2 * 1 * 128 * 2 * LAYERS  # a kv head a chip, keys and values
    shape, work = work_of(settings_of(), Split(2, 4, slots, "full"))
    a_token = 2 * MATRIX / 4 + ATTENTION / 4 * TOKENS / 2

    def seconds(tokens, rows):
        read = shape.sampled + rows * TOKENS / 2 * a_position
        return max(tokens * a_token / 989e12, read / 3350e9)

    sampled, read, prompts = tokens_of(256, chunks=6, questions=16)
    wanted = sampled / slots * seconds(slots, slots) + read / 256 * seconds(256, 1)
    wanted += prompts * (2 * MATRIX / 4 + ATTENTION / 4 * PROMPT) / 989e12
    assert work.rollout_seconds == pytest.approx(wanted + work.rollout_sent / 450e9, rel=1e-9)


@pytest.mark.parametrize(("remat", "sums"), [("none", 4), ("full", 5)])
def test_an_update_gathers_weights_twice_and_reduces_gradients_for_each_micro_batch(remat, sums):
    """512 rows are 22 micro-batches of 3 rows a shard, in each of two epochs."""
    s = settings_of(rl={"micro_tokens": 24 * TOKENS, "epochs": 2})
    shape, work = work_of(s, Split(8, 1, 4, remat))
    # in bfloat16, but the head before its cast, and gradients in float32
    passes, head = 2 * 22, 2 * VOCAB * WIDTH * 2
    gathered = (2 * shape.sampled + head + 2 * shape.sampled) * 7 / 8
    assert work.update_sent == pytest.approx(passes * gathered, rel=1e-9)
    s = settings_of(rl={"micro_tokens": 6 * TOKENS, "epochs": 2})
    shape, work = work_of(s, Split(2, 4, 4, remat))
    passes, head = 2 * 86, 2 * VOCAB / 4 * WIDTH * 2  # 512 / 6
    gathered = (2 * shape.sampled + head + 2 * shape.sampled) / 2
    summed = 3 * TOKENS * sums * LAYERS * WIDTH * 2 * (2 * 3 / 4)
    assert work.update_sent == pytest.approx(passes * (gathered + summed), rel=1e-9)


def test_an_update_takes_what_is_more_its_products_or_what_it_sends():
    short = {"buckets": (512,), "micro_tokens": 512}  # a row a chip: weights are sent for few
    for rl, sending in (({}, False), (short, True)):
        _, work = work_of(settings_of(rl=rl), Split(8, 1, 4, "full"))
        times = work.update_flops / 989e12, work.update_sent / 450e9
        assert work.update_seconds == max(times) == times[sending]


def test_adapters_are_split_over_tensor_and_cost_a_rollout_nothing_once_merged():
    rank, split = 32, Split(2, 4, 4, "full")
    outputs = 2 * (WIDTH + HEADS * 128) + 2 * (WIDTH + 512) + 3 * (WIDTH + 18_944)
    adapters = LAYERS * rank * outputs
    s = settings_of(rank=rank)
    (_, apart), (_, merged) = (work_of(s, split, merge=merge) for merge in (False, True))
    tokens = sum(tokens_of(256, chunks=6, questions=16))
    saved = apart.rollout_flops - merged.rollout_flops
    assert saved == pytest.approx(tokens * 2 * adapters / 4, rel=1e-6)
    # forward twice; back through a frozen matrix once, through an adapter and attention twice
    a_token = 2 * MATRIX / 4 * 3 + (2 * adapters / 4 + ATTENTION / 4 * TOKENS / 2) * 4
    rows = 65_536 // TOKENS // 2  # of a shard in a micro-batch
    tokens = -(-512 // (2 * rows)) * rows * TOKENS
    assert apart.update_flops == pytest.approx(tokens * a_token, rel=1e-6)


def ways_of(s, chips):
    """The most bytes and the seconds of every split: of a rollout and of an update."""
    model = planned_model(s.model)
    for split in splits_on(s, model, chips):
        shape, work = work_of(s, split, chips=chips)
        held = bytes_on(s, model, shape, split, choose(model, platform="gpu"))
        yield held.peak, (work.rollout_seconds, work.update_seconds)


@pytest.mark.parametrize(("epochs", "slower"), [(1, "update"), (64, "rollout")])
def test_the_split_with_the_fastest_step_is_chosen_not_that_with_the_fastest_phase(epochs, slower):
    s = settings_of(rl={"epochs": epochs})
    s = dataclasses.replace(s, model=dataclasses.replace(s.model, remat="none"))
    fitting = [seconds for peak, seconds in ways_of(s, H100) if peak <= H100.usable]
    work = estimate(s, planned_model(s.model), H100).work
    assert work.rollout_seconds + work.update_seconds == min(map(sum, fitting))
    phase = ("rollout", "update").index(slower)
    assert work[-2:][phase] > min(seconds[phase] for seconds in fitting)


def test_where_none_fits_the_split_of_the_least_bytes_is_shown():
    s, chips = settings_of(), slices("h100x1")[0]
    chosen = estimate(s, planned_model(s.model), chips)
    peaks = [peak for peak, _ in ways_of(s, chips)]
    assert chips.usable < chosen.bytes.peak == min(peaks) < max(peaks)


@pytest.mark.parametrize(("topology", "tensors"), [("h100x8", {1, 2, 4}), ("v5e:4x4", {1, 2, 4})])
def test_heads_are_split_evenly_inside_one_host(topology, tensors):
    s = settings_of()  # 28 heads: not over 8 chips
    model = planned_model(s.model)
    splits = splits_on(s, model, slices(topology)[0])
    assert {split.tensor for split in splits} == tensors
    even = dataclasses.replace(model, heads=32)
    more = {split.tensor for split in splits_on(s, even, slices(topology)[0])}
    assert more == tensors | ({8} if topology == "h100x8" else set())


def test_no_split_keeps_more_than_the_remat_of_the_config():
    s = settings_of()
    s = dataclasses.replace(s, model=dataclasses.replace(s.model, remat="dots"))
    splits = splits_on(s, planned_model(s.model), H100)
    assert {split.remat for split in splits} == {"dots", "dots_no_batch", "full"}

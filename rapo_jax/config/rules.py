"""The values of a run that is to train: choices, bounds, and what must fit together."""

from __future__ import annotations

from rapo_jax.config import SANDBOX_LAYERS, Settings
from rapo_jax.config.check_buffer import AGENTS, check_buffer
from rapo_jax.config.check_lora import check_lora
from rapo_jax.config.check_places import check_distributed
from rapo_jax.config.check_search import check_search
from rapo_jax.config.check_stages import METHODS, check_stages
from rapo_jax.config.check_suites import check_suites
from rapo_jax.config.check_tasks import check_dataset
from rapo_jax.config.require import one_of, read, require

CHOICES = {
    "method": METHODS,
    "distributed.mode": ("off", "auto", "explicit"),
    "rollout.driver": ("scan", "host"),
    "retrieval.schedule": ("constant", "linear", "cosine"),
    "retrieval.unit": ("step", "trajectory"),
    "retrieval.history": ("full", "without_retrieved"),
    "retrieval.encoder": ("ngram", "minilm"),
    "retrieval.index": ("auto", "exact", "brute", "tree"),
    "buffer.agent": AGENTS,
    "buffer.malformed": ("skip", "fail"),
    "optimizer.schedule": ("constant", "linear", "cosine"),
    "rl.quality": ("decrease", "increase", "off"),
    "rl.timing": ("high", "low", "off"),
    "rl.aggregation": ("sequence_mean", "token_mean", "sequence_sum"),
    "model.dtype": ("float32", "bfloat16"),
    "model.rope_type": ("default", "llama3"),
    "model.remat": ("none", "dots", "dots_no_batch", "offload", "full"),
    "model.attention": ("auto", "plain", "cudnn", "splash"),
    "export.dtype": ("same", "float32", "bfloat16"),
    "task.name": ("chains", "dataset", "module:TASK"),
    "task.dataset.malformed": ("skip", "fail"),
    "task.metric": ("f1", "math"),
    "tools.search.kind": ("local", "retrieval", "bing", "serper", "searxng"),
    "evaluate.scoring": ("official", "strict"),
}


def check(s: Settings) -> None:
    """Refuses values that cannot work, before any compile. Raises ValueError."""
    user_task = ":" in s.task.name
    for key, known in CHOICES.items():
        if key != "buffer.agent" and (key != "task.name" or not user_task):
            one_of(key, read(s, key), known)
    require(
        user_task or not s.task.user_arguments,
        "task.user_arguments",
        s.task.user_arguments,
        "only task.name='module:TASK' reads it",
    )
    check_stages(s.stages)
    check_distributed(s)
    check_lora(s)
    check_suites(s)
    check_search(s)
    for layer in s.tools.python.require:
        one_of("tools.python.require", layer, ("all", *SANDBOX_LAYERS))
    for key in (
        "retrieval.probability retrieval.noise buffer.expert_error sft.inject_share sft.inject "
        "sft.follow sft.weak_first sft.weak_habit sft.weak_stop sft.gate_one_hop "
        "sft.gate_follow"
    ).split():
        require(0 <= read(s, key) <= 1, key, read(s, key), "a probability lies in [0, 1]")
    for key in (
        "rollout.questions rollout.prompt_tokens rollout.step_tokens rollout.observation_tokens "
        "rollout.retrieved_tokens rollout.absorb_chunk buffer.samples buffer.keep buffer.questions "
        "sft.batch sft.steps sft.examples rl.steps rl.epochs rl.mini_batches rl.micro_tokens "
        "evaluate.rows checkpoint.every checkpoint.keep log.trajectory_every tools.workers "
        "tools.passages tools.output_chars tools.memory_mb model.score_chunk model.rope_positions "
        "score.batch_tokens tools.search.concurrency"
    ).split():
        require(read(s, key) >= 1, key, read(s, key), "must be at least 1")
    r = s.rollout
    require(
        r.chunks >= 1 and r.questions % r.chunks == 0,
        "rollout.chunks",
        r.chunks,
        f"must divide rollout.questions={r.questions}",
    )
    require(
        r.group_size >= 2,
        "rollout.group_size",
        r.group_size,
        "a group-relative advantage needs at least 2 rollouts per question",
    )
    require(
        0 <= r.n_hybrid <= r.group_size,
        "rollout.n_hybrid",
        r.n_hybrid,
        f"hybrid rollouts are part of the group: 0 … rollout.group_size={r.group_size}",
    )
    require(
        r.max_tokens > r.prompt_tokens,
        "rollout.max_tokens",
        r.max_tokens,
        f"a row holds the prompt too: more than rollout.prompt_tokens={r.prompt_tokens}",
    )
    require(
        r.questions % s.rl.mini_batches == 0,
        "rl.mini_batches",
        s.rl.mini_batches,
        f"must divide rollout.questions={r.questions}: a group stays in one mini-batch",
    )
    require(
        bool(s.rl.buckets) and tuple(sorted(s.rl.buckets)) == s.rl.buckets,
        "rl.buckets",
        s.rl.buckets,
        "ascending row widths in tokens, such as (64, 128)",
    )
    require(
        s.rl.buckets[-1] >= r.max_tokens,
        "rl.buckets",
        s.rl.buckets,
        f"the widest must hold rollout.max_tokens={r.max_tokens}",
    )
    require(
        s.model.heads % s.model.kv_heads == 0,
        "model.kv_heads",
        s.model.kv_heads,
        f"must divide model.heads={s.model.heads}",
    )
    require(s.model.head_width % 2 == 0, "model.head_width", s.model.head_width, "must be even")
    require(
        s.model.rope_high_freq > s.model.rope_low_freq > 0,
        "model.rope_high_freq",
        s.model.rope_high_freq,
        f"must be more than model.rope_low_freq={s.model.rope_low_freq}, both above 0",
    )
    positive = "model.rope_theta model.rope_factor export.shard_gb tools.search.deadline_s"
    for key in positive.split():
        require(read(s, key) > 0, key, read(s, key), "must be more than 0")
    require(s.rl.ddof in (0, 1), "rl.ddof", s.rl.ddof, "0 or 1")
    for key in (
        "rl.std_floor rl.clip_low rl.clip_high rl.m rl.a rl.kl rollout.temperature "
        "rollout.max_calls evaluate.every evaluate.limit tools.search.per_second"
    ).split():
        require(read(s, key) >= 0, key, read(s, key), "must be at least 0")
    require(
        s.rl.entropy_floor > 0,
        "rl.entropy_floor",
        s.rl.entropy_floor,
        "H_before may be 0 and divides (eq. 5): a small positive number of nats, such as 1e-6",
    )
    check_buffer(s)
    if s.task.name == "dataset":
        check_dataset(s)

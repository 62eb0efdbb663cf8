"""Rules for the values of rollouts and of training methods; see `rules`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TypeAlias

from rapo_jax.config import Settings

Rule: TypeAlias = tuple[str, bool, str]
"""(key, whether it holds, remedy)."""


def rollout_rules(s: Settings) -> Iterator[Rule]:
    r, buckets = s.rollout, s.rl.buckets
    divides = f"must divide rollout.questions={r.questions}"
    remedy = f"hybrid rollouts are part of the group: 0 … rollout.group_size={r.group_size}"
    yield "rollout.n_hybrid", 0 <= r.n_hybrid <= r.group_size, remedy
    divisors = ", ".join(str(n) for n in range(2, r.group_size + 1) if r.group_size % n == 0)
    remedy = f"trees divide rollout.group_size={r.group_size}: {divisors}, or 1 for none"
    yield "rollout.tree_rows", r.group_size % r.tree_rows == 0, remedy
    remedy = f"has no effect: in trees of rollout.tree_rows={r.tree_rows} no row forks twice; set "
    remedy += "it to 0, or rollout.tree_rows to 3 or more"
    yield "rollout.branch_penalty", r.branch_penalty == 0 or r.tree_rows > 2, remedy
    remedy = f"a tree of rollout.tree_rows={r.tree_rows} needs a slot for each row; raise it, or 0 "
    remedy += "for as many as rollouts"
    yield "rollout.slots", r.slots == 0 or r.slots >= r.tree_rows, remedy
    remedy = f"a row holds the prompt too: more than rollout.prompt_tokens={r.prompt_tokens}"
    yield "rollout.max_tokens", r.max_tokens > r.prompt_tokens, remedy
    whole = f"{divides}: a group stays in one mini-batch"
    yield "rl.mini_batches", r.questions % s.rl.mini_batches == 0, whole
    ascending = bool(buckets) and tuple(sorted(buckets)) == buckets
    yield "rl.buckets", ascending, "ascending row widths in tokens, such as (64, 128)"
    widest = f"the widest must hold rollout.max_tokens={r.max_tokens}"
    yield "rl.buckets", buckets[-1] >= r.max_tokens, widest


def method_rules(s: Settings) -> Iterator[Rule]:
    """Rules for keys that only some methods read or allow."""
    r, method = s.rollout, s.of_method
    remedy = f"method={s.method!r} samples nothing that could retrieve"
    yield "retrieval.always", not s.retrieval.always or method.samples, remedy
    yield "rl.kl", not method.off_policy or s.rl.kl == 0, f"method={s.method!r} has no KL term: 0"
    share, fresh = s.rl.replay_share, s.fresh_questions
    yield "rl.replay_share", share == 0 or method.replays, "only method='rollout_replay' reads it"
    remedy = f"leaves {fresh} fresh groups: a divisor of rollout.questions={r.questions}"
    yield "rl.replay_share", fresh > 0 and r.questions % fresh == 0, remedy
    remedy = f"rounds to no past group of rollout.questions={r.questions}; raise it, or 0 for none"
    yield "rl.replay_share", share == 0 or fresh < r.questions, remedy
    remedy = (
        f"a step takes {r.questions - fresh} past groups, none of its {fresh} fresh questions: "
    )
    remedy += f"at least {r.questions}"
    yield "rl.replay_groups", share == 0 or s.rl.replay_groups >= r.questions, remedy
    remedy = f"method={s.method!r} has one bound of the clip, so set it to rl.clip_low: "
    remedy += f"{s.rl.clip_low}"
    yield "rl.clip_high", not method.replays or s.rl.clip_high == s.rl.clip_low, remedy
    remedy = f"the loss of method={s.method!r} does not read it: "
    yield "rl.clipping", not method.off_policy or s.rl.clipping == "ppo", f"{remedy}'ppo'"
    yield "rl.dual_clip", not method.off_policy or s.rl.dual_clip == 0, f"{remedy}0"
    remedy = "with past groups (rl.replay_share) no groups are resampled: 0"
    yield "rl.resample", share == 0 or s.rl.resample == 0, remedy
    remedy = f"method={s.method!r} learns from groups of equal rewards, too: 0"
    yield "rl.resample", not method.compares_steps or s.rl.resample == 0, remedy
    remedy = "past rows keep the ratio to the policy that read their traces: 'read'"
    reads = s.rl.retrieved_traces == "read"
    yield "rl.retrieved_traces", reads or not method.replays, remedy
    remedy = "no rollout retrieves; method='rapo' or retrieval.always=True, with rollout.n_hybrid"
    yield "rl.retrieved_traces", reads or s.n_hybrid > 0, remedy
    fits = s.rl.dual_clip == 0 or s.rl.dual_clip > 1
    yield "rl.dual_clip", fits, "more than 1, such as 3, or 0 for none"
    remedy = "with trajectories that others wrote (luffy, rollout_replay) no rollouts branch: 1"
    yield "rollout.tree_rows", not method.off_policy or r.tree_rows == 1, remedy
    buffer = {"sft", "buffer"} & set(s.stages) or ("rl" in s.stages and s.reads_buffer)
    remedy = "cold start and buffer are in protocol='rapo'; leave their stages out, method='grpo'"
    yield "protocol", s.protocol == "rapo" or not buffer, remedy

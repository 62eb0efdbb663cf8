"""From a rollout batch to advantages: the method's equations applied in order, as one program."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from rapo_jax.config import RlSettings, Settings
from rapo_jax.method.advantages import group_advantage, largest_safe_a, rapo_advantage
from rapo_jax.method.entropy import step_entropy
from rapo_jax.method.objective import share_silenced_above
from rapo_jax.method.rewards import retrieval_reward, retrieval_reward_per_step
from rapo_jax.types import Array, Source, Trajectory


class Calibrated(NamedTuple):
    """What the method makes of a rollout batch (Eqs. 2, 5-7, 9, 10, F_ret)."""

    advantage_B: Array
    retrieval_B: Array
    share_B: Array
    z_BS: Array
    floors: dict[str, Array]


def calibrate(
    rl: RlSettings, group_size: int, num_steps: int, trajectory: Trajectory, reward_B: jax.Array
) -> Calibrated:
    """Rewards and advantages of a batch whose rows are grouped by question."""
    entropy_BS, source_BS = step_entropy(
        trajectory.entropy_BT, trajectory.source_BT, trajectory.step_BT, num_steps=num_steps
    )
    how: dict[str, Any] = {
        "quality": rl.quality,
        "timing": rl.timing,
        "entropy_floor": rl.entropy_floor,
    }
    retrieval_B = retrieval_reward(entropy_BS, source_BS, **how)
    z_BS = retrieval_reward_per_step(entropy_BS, source_BS, **how)
    grouped = (reward_B.reshape(-1, group_size), retrieval_B.reshape(-1, group_size))
    advantage_QG = rapo_advantage(*grouped, a=rl.a, ddof=rl.ddof, std_floor=rl.std_floor)
    source_BT = trajectory.source_BT
    response_B = ((source_BT != Source.PAD) & (source_BT != Source.PROMPT)).sum(1)
    share_B = (source_BT == Source.RETRIEVED).sum(1) / jnp.maximum(response_B, 1)
    policy_BS = source_BS == Source.POLICY
    below_BS = policy_BS & (entropy_BS < rl.entropy_floor)
    retrieval_std_Q = jnp.std(grouped[1], axis=1, ddof=rl.ddof)
    floors = {
        "floor/entropy_active": below_BS.sum() / jnp.maximum(policy_BS.sum(), 1),
        "floor/std_active": (retrieval_std_Q < rl.std_floor).mean(),
        "reward/nonzero_groups": (
            jnp.abs(group_advantage(grouped[0], ddof=rl.ddof, std_floor=rl.std_floor)).max(axis=1)
            > 1e-3
        ).mean(),
    }
    return Calibrated(advantage_QG.reshape(-1), retrieval_B, share_B, z_BS, floors)


def guards(s: Settings) -> list[str]:
    """Values that can silence or flip the gradient (method, Guards), one warning each."""
    lines = []
    if s.n_hybrid:
        limit = largest_safe_a(s.rollout.group_size, s.rl.ddof)
        if s.rl.a >= limit:
            lines.append(
                f"rl.a={s.rl.a}: from {limit:.3f} on, at rollout.group_size="
                f"{s.rollout.group_size}, the retrieval reward can flip the sign of an advantage"
            )
        share = share_silenced_above(s.rl.m, s.rl.clip_high)
        if share < 1:
            lines.append(
                f"rl.m={s.rl.m}: a rollout with a share of retrieved tokens above {share:.2f} "
                "starts beyond 1 + rl.clip_high, which silences its positive tokens"
            )
    return lines

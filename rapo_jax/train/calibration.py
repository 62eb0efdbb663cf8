"""The method's calibration, compiled with the values of a config; and warnings about these."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp

from rapo_jax.config import RlSettings, Settings
from rapo_jax.method.advantages import group_advantage, largest_safe_a
from rapo_jax.method.calibrate import Calibration, calibrate
from rapo_jax.method.clipping import CLIPPINGS
from rapo_jax.method.objective import share_silenced_above
from rapo_jax.method.rewards import around_retrievals
from rapo_jax.train.methods import METHODS
from rapo_jax.types import Array, Trajectory

Calibrator = Callable[[Trajectory, Array], tuple[Calibration, dict[str, Array]]]
"""(trajectory, reward_B) -> (calibration, diagnostics)."""


def make_calibrator(s: Settings, *, num_steps: int) -> Calibrator:
    """Compiles `calibrate` and `diagnostics` with the settings of a run.

    `num_steps`: steps that a row can have, see `Sampler.most_steps`.
    """
    rl, group_size = s.rl, s.rollout.group_size

    @jax.jit
    def calibrator(trajectory: Trajectory, reward_B: Array):
        calibration = calibrate(
            trajectory.entropy_BT,
            trajectory.source_BT,
            trajectory.step_BT,
            reward_B,
            group_size=group_size,
            num_steps=num_steps,
            quality=rl.quality,
            timing=rl.timing,
            entropy_floor=rl.entropy_floor,
            a=rl.a,
            ddof=rl.ddof,
            std_floor=rl.std_floor,
        )
        return calibration, diagnostics(calibration, reward_B, rl, group_size=group_size)

    return calibrator


def diagnostics(
    calibration: Calibration, reward_B: jax.Array, rl: RlSettings, *, group_size: int
) -> dict[str, jax.Array]:
    """Shares at which a numerical floor decides, and of groups with a spread.

    `floor/entropy_active`: of retrievals that a policy step follows, those whose H_before is below
    `rl.entropy_floor`;
    `floor/std_active`: of groups, those whose Z_ret have a std below `rl.std_floor`;
    `reward/nonzero_groups`: of groups, those with any outcome advantage above 1e-3.
    """
    around = around_retrievals(calibration.entropy_BS, calibration.source_BS)
    below_BS = around.judged_BS & (around.before_BS < rl.entropy_floor)
    Z_QG = calibration.retrieval_reward_B.reshape(-1, group_size)
    reward_QG = reward_B.reshape(-1, group_size)
    outcome_QG = group_advantage(reward_QG, ddof=rl.ddof, std_floor=rl.std_floor)
    return {
        "floor/entropy_active": below_BS.sum() / jnp.maximum(around.judged_BS.sum(), 1),
        "floor/std_active": (jnp.std(Z_QG, axis=1, ddof=rl.ddof) < rl.std_floor).mean(),
        "reward/nonzero_groups": (jnp.abs(outcome_QG).max(axis=1) > 1e-3).mean(),
    }


def guards(s: Settings) -> list[str]:
    """Warnings, one a line, about values that bias the gradient, zero it or flip its sign."""
    lines = []
    if s.rollout.temperature != 1:
        lines.append(
            f"rollout.temperature={s.rollout.temperature}: log-probabilities and entropies are "
            "those of temperature 1, the importance ratios are therefore not "
            "relative to the sampling distribution"
        )
    if s.rl.retrieved_traces == "removed" and s.retrieval.unit == "trajectory":
        lines.append(
            "rl.retrieved_traces='removed', retrieval.unit='trajectory': a trajectory holds the "
            "results and the answer; without it the update teaches answers that nothing supports"
        )
    if s.n_hybrid:
        limit = largest_safe_a(s.rollout.group_size, s.rl.ddof)
        method = METHODS[s.method]
        if s.rl.a >= limit and method.retrieval_reward:
            lines.append(
                f"rl.a={s.rl.a}: from {limit:.3f} on, at rollout.group_size="
                f"{s.rollout.group_size}, the retrieval reward can flip the sign of an advantage"
            )
        share = share_silenced_above(s.rl.m, s.rl.clip_high)
        _, keeps_gradient_above = CLIPPINGS[s.rl.clipping]
        if share < 1 and method.importance_shaping and not keeps_gradient_above:
            lines.append(
                f"rl.m={s.rl.m}: a rollout with a share of retrieved tokens above {share:.2f} "
                "starts beyond 1 + rl.clip_high, so its tokens of positive advantage get zero "
                "gradient"
            )
    return lines

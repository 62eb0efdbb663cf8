"""The method's calibration, compiled with the values of a config; and warnings about these."""

from __future__ import annotations

from collections.abc import Callable

import jax

from rapo_jax.config import Settings
from rapo_jax.method.advantages import largest_safe_a
from rapo_jax.method.calibrate import Calibration, calibrate, diagnostics
from rapo_jax.method.objective import share_silenced_above
from rapo_jax.types import Array, Trajectory

Calibrator = Callable[[Trajectory, Array], tuple[Calibration, dict[str, Array]]]
"""(trajectory, reward_B) -> (calibration, diagnostics)."""


def make_calibrator(s: Settings) -> Calibrator:
    """Compiles `calibrate` and `diagnostics` with the settings of a run."""
    rl, group_size = s.rl, s.rollout.group_size

    @jax.jit
    def calibrator(trajectory: Trajectory, reward_B: Array):
        calibration = calibrate(
            trajectory.entropy_BT,
            trajectory.source_BT,
            trajectory.step_BT,
            reward_B,
            group_size=group_size,
            num_steps=2 * (s.rollout.max_calls + 1),
            quality=rl.quality,
            timing=rl.timing,
            entropy_floor=rl.entropy_floor,
            a=rl.a,
            ddof=rl.ddof,
            std_floor=rl.std_floor,
        )
        return calibration, diagnostics(
            calibration,
            reward_B,
            group_size=group_size,
            entropy_floor=rl.entropy_floor,
            ddof=rl.ddof,
            std_floor=rl.std_floor,
        )

    return calibrator


def guards(s: Settings) -> list[str]:
    """Warnings, one a line, about values that can silence or flip the gradient (docs/method.md)."""
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

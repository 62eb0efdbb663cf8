"""AdamW with global-norm clipping and a schedule, from Optax."""

from __future__ import annotations

import jax
import optax

from rapo_jax.config import OptimizerSettings


def learning_rate_schedule(o: OptimizerSettings, *, steps: int) -> optax.Schedule:
    """Linear warm-up over `warmup` updates, then constant or decaying to 0 at update `steps`."""
    after = max(steps - o.warmup, 1)
    decays = {
        "constant": optax.constant_schedule(o.learning_rate),
        "linear": optax.linear_schedule(o.learning_rate, 0.0, after),
        "cosine": optax.cosine_decay_schedule(o.learning_rate, after),
    }
    warm = optax.linear_schedule(o.learning_rate / max(o.warmup, 1), o.learning_rate, o.warmup)
    return optax.join_schedules([warm, decays[o.schedule]], [o.warmup])


def make_optimizer(o: OptimizerSettings, schedule: optax.Schedule) -> optax.GradientTransformation:
    """Clip by global norm, then AdamW; moments are float32 like the master weights."""
    return optax.chain(
        optax.clip_by_global_norm(o.clip_norm),
        optax.adamw(schedule, b1=o.b1, b2=o.b2, eps=o.eps, weight_decay=o.weight_decay),
    )


def updates_made(opt_state: optax.OptState) -> jax.Array:
    """Number of applied optimizer updates: the position in the learning-rate schedule.

    Skipped updates do not count.
    """

    def of_schedule(path: tuple[object, ...], _: object) -> bool:
        return "ScaleBySchedule" in str(path[-1])

    return optax.tree.get(opt_state, "count", filtering=of_schedule)

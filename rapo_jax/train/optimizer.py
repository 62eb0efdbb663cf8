"""AdamW with global-norm clipping and a schedule, from Optax."""

from __future__ import annotations

import optax


def learning_rate_schedule(
    *, learning_rate: float, warmup: int, schedule: str, steps: int
) -> optax.Schedule:
    """Linear warm-up over `warmup` updates, then constant or decaying to 0 at update `steps`."""
    after = max(steps - warmup, 1)
    decays = {
        "constant": optax.constant_schedule(learning_rate),
        "linear": optax.linear_schedule(learning_rate, 0.0, after),
        "cosine": optax.cosine_decay_schedule(learning_rate, after),
    }
    warm = optax.linear_schedule(learning_rate / max(warmup, 1), learning_rate, warmup)
    return optax.join_schedules([warm, decays[schedule]], [warmup])


def make_optimizer(
    schedule: optax.Schedule,
    *,
    clip_norm: float,
    b1: float,
    b2: float,
    eps: float,
    weight_decay: float,
) -> optax.GradientTransformation:
    """Clip by global norm, then AdamW; moments are float32 like the master weights."""
    return optax.chain(
        optax.clip_by_global_norm(clip_norm),
        optax.adamw(schedule, b1=b1, b2=b2, eps=eps, weight_decay=weight_decay),
    )

"""What adapters ask of the keys that describe them."""

from __future__ import annotations

from rapo_jax.config import Settings
from rapo_jax.config.require import one_of, require

TARGETS = ("q", "k", "v", "o", "gate", "up", "down")


def check_lora(s: Settings) -> None:
    """Refuses adapters that cannot be; model/lora.py checks the rank against the kernels."""
    lora = s.model.lora
    require(lora.rank >= 0, "model.lora.rank", lora.rank, "must be at least 0, which is none")
    require(lora.alpha > 0, "model.lora.alpha", lora.alpha, "must be more than 0")
    for target in lora.targets:
        one_of("model.lora.targets", target, TARGETS)
    require(
        len(set(lora.targets)) == len(lora.targets) > 0,
        "model.lora.targets",
        lora.targets,
        f"name each kernel to adapt once: some of {', '.join(TARGETS)}",
    )

"""The stages there are, and how a list of them is written."""

from __future__ import annotations

from rapo_jax.config.require import one_of, require

METHODS = ("rapo", "grpo", "sft")
READERS = ("score", "export", "plan", "search_index")
"""Stages that open no run: they read weights, shapes or a corpus, and leave the run as it is."""
STAGES = ("sft", "buffer", "rl", "evaluate", "report", *READERS)


def check_stages(stages: tuple[str, ...]) -> None:
    for stage in stages:
        # The flag --config.stages=rl,evaluate arrives as the one stage 'rl,evaluate'.
        parts = [part.strip(" '\"()[]") for part in stage.split(",")]
        working = "(" + ",".join(repr(part) for part in parts if part) + ")"
        require(len(parts) == 1, "stages", stages, f'write a tuple: --config.stages="{working}"')
        one_of("stages", stage, STAGES)

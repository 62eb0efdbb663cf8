"""Checks settings before a run opens: devices, drivers and the calls of its task."""

from __future__ import annotations

import jax
from jax.sharding import Mesh

from rapo_jax.config import Settings
from rapo_jax.model.sharding import row_shards
from rapo_jax.tasks.schema import Task
from rapo_jax.text.observations import whole_retrieved_ids
from rapo_jax.text.protocols import Protocol
from rapo_jax.text.tokens import Tokens


def check_devices(settings: Settings, mesh: Mesh) -> None:
    """Raises ValueError where rows cannot be spread over the devices or processes."""
    shards, r = row_shards(mesh), settings.rollout
    for key, rows in (
        ("rollout.questions", r.questions),
        ("evaluate.rows", settings.evaluate.rows),
    ):
        if rows % shards:
            raise ValueError(
                f"{key}={rows}: must be a multiple of the {shards} devices that rows are spread "
                "over (mesh.data x mesh.fsdp)"
            )
    if (fresh := settings.fresh_questions) % shards:
        raise ValueError(
            f"rl.replay_share={settings.rl.replay_share}: leaves {fresh} fresh groups, which must "
            f"be a multiple of the {shards} devices that rows are spread over"
        )
    if r.slots % shards:
        raise ValueError(f"rollout.slots={r.slots}: must be a multiple of the {shards} devices")
    if jax.process_count() > 1 and r.driver == "host":
        raise ValueError(
            f"rollout.driver='host': it drives one process, and there are {jax.process_count()}; "
            "use 'jit'"
        )


def check_calls(settings: Settings, task: Task) -> None:
    """Raises ValueError if `rollout.max_calls` is less than the task's scripted agents need."""
    calls = settings.rollout.max_calls
    if calls < task.calls:
        raise ValueError(
            f"rollout.max_calls={calls}: task.name={settings.task.name!r} needs up to {task.calls} "
            f"tool calls a trajectory; set it to {task.calls} or more"
        )


def check_retrieved_tokens(settings: Settings, tokens: Tokens) -> None:
    """Raises ValueError if the tags of a retrieved trace alone do not fit, where there are any."""
    shown = "sft" in settings.stages and settings.sft.inject_share > 0  # in the cold start
    if not settings.n_hybrid and not shown:
        return
    room, needed = settings.rollout.retrieved_tokens, len(whole_retrieved_ids(tokens, ""))
    if room < needed:
        raise ValueError(
            f"rollout.retrieved_tokens={room}: the tags of a retrieved trace need {needed}; raise "
            "it, or retrieve nothing (rollout.n_hybrid=0, sft.inject_share=0)"
        )


def check_condensing(settings: Settings, protocol: Protocol) -> None:
    """Raises ValueError if settings do not suit a protocol that condenses searches."""
    if not protocol.condenses:
        return
    r, name = settings.rollout, f"protocol={settings.protocol!r}"
    trained = [stage for stage in ("sft", "buffer", "rl") if stage in settings.stages]
    if trained:
        raise ValueError(
            f"stages={settings.stages!r}: {name} is evaluated, not trained, for the model writes "
            f"its observations; leave {', '.join(trained)} out"
        )
    if r.driver != "host":
        raise ValueError(
            f"rollout.driver={r.driver!r}: {name} samples the model while a rollout waits; use "
            "'host'"
        )

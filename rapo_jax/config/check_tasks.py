"""What a task without a made world asks of the other keys."""

from __future__ import annotations

from rapo_jax.config import Settings
from rapo_jax.config.require import read, require


def check_dataset(s: Settings) -> None:
    """A data set brings questions alone: no corpus unless it is named, and no scripted agent."""
    remedy = "task.name='dataset' needs a file of questions or a published set, as 'gsm8k:train'"
    for key in ("task.dataset.train", "task.dataset.eval"):
        require(bool(read(s, key).strip()) or s.suites_alone, key, read(s, key), remedy)
    own_search = any(pair[:1] == ("search",) for pair in s.tools.user_tools)
    require(
        s.tools.search.kind != "local"
        or own_search
        or bool(s.tools.search.index or s.task.dataset.documents),
        "task.dataset.documents",
        s.task.dataset.documents,
        "tools.search.kind='local' searches this corpus (JSON lines): name one, or search a "
        "service (tools.search.kind='retrieval')",
    )
    check_unscripted(s)


def check_unscripted(s: Settings) -> None:
    """Refuses what only a task with scripted agents can do."""
    gate = "decisions to measure a gate by: set it to 0"
    for key, holds, remedy in (
        (
            "model.folder",
            bool(s.model.folder),
            "scripted agent to learn from: name a Hugging Face folder of an instruct model",
        ),
        (
            "stages",
            "sft" not in s.stages,
            "demonstrations for a cold start: leave 'sft' out and start from model.folder",
        ),
        (
            "buffer.agent",
            "scripted" not in s.buffer.agents or "buffer" not in s.stages,
            "scripted agent: bring traces (buffer.files with buffer.agent='none') or sample a "
            "policy (buffer.agent='checkpoint' or 'endpoint')",
        ),
        ("sft.gate_one_hop", s.sft.gate_one_hop == 0, gate),
        ("sft.gate_follow", s.sft.gate_follow == 0, gate),
    ):
        require(holds, key, read(s, key), f"task.name={s.task.name!r} has no {remedy}")

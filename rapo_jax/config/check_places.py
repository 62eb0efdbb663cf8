"""Where a run takes place: what its processes must be told."""

from __future__ import annotations

from rapo_jax.config import Settings
from rapo_jax.config.check_stages import READERS
from rapo_jax.config.require import require


def check_distributed(s: Settings) -> None:
    d, explicit = s.distributed, s.distributed.mode == "explicit"
    host, _, port = d.coordinator.rpartition(":")
    for key, unset, works, remedy in (
        ("coordinator", "", host and port.isdigit(), "host:port of process 0, '10.0.0.1:1234'"),
        ("processes", 1, d.processes >= 1, "must be at least 1"),
        (
            "process",
            0,
            0 <= d.process < d.processes,
            f"0 … distributed.processes={d.processes} - 1",
        ),
    ):
        value, only = getattr(d, key), "only distributed.mode='explicit' reads it"
        holds = bool(works) if explicit else value == unset
        require(holds, f"distributed.{key}", value, remedy if explicit else only)
    readers = "score, export, plan and search_index run in one process: set distributed.mode='off'"
    require(d.mode == "off" or not set(s.stages) & set(READERS), "stages", s.stages, readers)

"""Flags of XLA with which small programs are compiled quickly; read before jax starts."""

from __future__ import annotations

from importlib.metadata import version

OLDER_EMITTERS = tuple(map(int, version("jax").split(".")[:2])) < (0, 11)
"""Newer versions have no others to choose, and end a process that names the choice."""
QUICK = "--xla_backend_optimization_level=0" + (
    " --xla_cpu_use_fusion_emitters=false" * OLDER_EMITTERS
)

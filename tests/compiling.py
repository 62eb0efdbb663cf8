"""How tests compile: quick flags of XLA, read before jax starts, and caches of their own."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path

OLDER_EMITTERS = tuple(map(int, version("jax").split(".")[:2])) < (0, 11)
"""Newer versions have no others to choose, and end a process that names the choice."""
QUICK = "--xla_backend_optimization_level=0" + (
    " --xla_cpu_use_fusion_emitters=false" * OLDER_EMITTERS
)


@contextlib.contextmanager
def cached_in(folder: Path) -> Iterator[Callable[[], set[str]]]:
    """Every program compiled meanwhile is kept in `folder`; yields what lists their names."""
    import jax
    from jax.experimental.compilation_cache import compilation_cache

    keys = {
        "jax_compilation_cache_dir": str(folder),
        "jax_persistent_cache_min_compile_time_secs": 0.0,
        "jax_persistent_cache_min_entry_size_bytes": -1,
    }
    before = {key: getattr(jax.config, key) for key in keys}
    try:
        for key, value in keys.items():
            jax.config.update(key, value)
        compilation_cache.reset_cache()  # jax asks only once whether it has a cache
        yield lambda: {path.name for path in folder.iterdir() if "atime" not in path.name}
    finally:
        for key, value in before.items():
            jax.config.update(key, value)
        compilation_cache.reset_cache()

"""What the keys of the local search and of its index on disk ask of each other."""

from __future__ import annotations

from rapo_jax.config import Settings
from rapo_jax.config.require import one_of, read, require

INDEX_CHOICES = {
    "search_index.encoder": ("ngram", "minilm"),
    "search_index.kind": ("auto", "exact", "tree"),
    "search_index.malformed": ("skip", "fail"),
}


def check_search(s: Settings) -> None:
    index, found = s.search_index, s.tools.search
    require(
        not found.index or found.kind == "local",
        "tools.search.index",
        found.index,
        f"only tools.search.kind='local' reads it, not {found.kind!r}",
    )
    for key, known in INDEX_CHOICES.items():
        one_of(key, read(s, key), known)
    for name in ("width", "encoder_tokens"):
        value = getattr(index, name)
        require(value >= 1, f"search_index.{name}", value, "must be at least 1")
    mb, remedy = index.memory_mb, "a shard takes at least 64 MiB while it is built"
    require(mb >= 64, "search_index.memory_mb", mb, remedy)
    recall = index.recall
    require(0 < recall <= 1, "search_index.recall", recall, "a share of more than 0, at most 1")
    require(
        "search_index" not in s.stages or bool(index.corpus.strip()),
        "search_index.corpus",
        index.corpus,
        "name JSON lines of {id, contents} or {id, title, text}, plain or gzip",
    )

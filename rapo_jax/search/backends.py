"""Proposals of nearest keys by numpy, ScaNN's brute force or ScaNN's tree; see `nearest.py`."""

from __future__ import annotations

import hashlib
import importlib
import logging
import math
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import numpy as np

from rapo_jax.io.digests import check_digests, write_digests
from rapo_jax.io.files import locked, whole_folder

Candidates = Callable[[np.ndarray, int], np.ndarray]
"""(query_BE, n) -> row_BC: n likely nearest rows in any order, -1 where there is none."""

TREE_FROM = 20_000
"""Below this many keys exact search is fast enough, and the same on any machine."""
TREE_MIN = 16
"""ScaNN's asymmetric hashing needs at least this many points."""
_REORDER = 100
_MIN_SEARCHED = 16
"""Leaves; of more than twice as many, half are searched: benchmarks/buffer_size.py finds .76 of the
nearest keys in a tenth of them, .98 in half, at four times the time (below 1 ms a query)."""

log = logging.getLogger(__name__)


def scann_available() -> bool:
    """Whether ScaNN can be imported; a warning is logged where it cannot."""
    try:
        importlib.import_module("scann")
    except ImportError as error:
        log.warning("ScaNN cannot be imported (%s): exact numpy search instead", error)
        return False
    return True


def tree_leaves(rows: int) -> int:
    return round(math.sqrt(rows))


def tree_builder(key_ME: np.ndarray, *, searched: int, trained_on: int):
    """ScaNN's builder of a tree of `tree_leaves` with 4-bit codes (asymmetric hashing)."""
    import scann

    builder = scann.scann_ops_pybind.builder(key_ME, 1, "dot_product").tree(
        tree_leaves(len(key_ME)), searched, training_sample_size=min(len(key_ME), trained_on)
    )
    return builder.score_ah(2, anisotropic_quantization_threshold=0.2)


def _exact(key_ME: np.ndarray, folder: Path | None) -> Candidates:
    key_EM = np.ascontiguousarray(key_ME.T)

    def candidates(query_BE: np.ndarray, n: int) -> np.ndarray:
        score_BM = query_BE @ key_EM
        if n >= score_BM.shape[1]:
            return np.broadcast_to(np.arange(score_BM.shape[1]), score_BM.shape)
        # the n best of each query; of those that tie with the n-th, the first
        nth_B1 = -np.partition(-score_BM, n - 1, axis=1)[:, n - 1 : n]
        better_BM, ties_BM = score_BM > nth_B1, score_BM == nth_B1
        left_B1 = n - better_BM.sum(1, keepdims=True)
        chosen_BM = better_BM | (ties_BM & (ties_BM.cumsum(1) <= left_B1))
        return np.nonzero(chosen_BM)[1].reshape(-1, n)

    return candidates


def _brute(key_ME: np.ndarray, folder: Path | None) -> Candidates:
    import scann

    builder = scann.scann_ops_pybind.builder(key_ME, 1, "dot_product").score_brute_force()
    return _scann_candidates(builder.build(), len(key_ME), lambda n: {})


def _tree(key_ME: np.ndarray, folder: Path | None) -> Candidates:
    """Tree + asymmetric hashing + reordering with the exact vectors; kept in `folder` if given."""
    if len(key_ME) < TREE_MIN:
        return _brute(key_ME, folder)
    import scann

    leaves = tree_leaves(len(key_ME))
    searched = min(leaves, max(_MIN_SEARCHED, leaves // 2))
    scheme = f"scann {version('scann')} tree {leaves} {searched} ah 2 0.2 reorder {_REORDER} "
    identity = hashlib.sha256(f"{scheme}{key_ME.shape}".encode() + key_ME.tobytes()).hexdigest()

    def build():
        builder = tree_builder(key_ME, searched=searched, trained_on=250_000)
        return builder.reorder(_REORDER).build()

    if folder is None:
        searcher = build()
    else:  # of runs side by side one builds it, and the others load it
        with locked(folder.with_name(f"{folder.name}.lock")):
            if _is_kept(folder, identity):
                searcher = scann.scann_ops_pybind.load_searcher(str(folder))
            else:
                searcher = build()
                with whole_folder(folder) as draft:
                    searcher.serialize(str(draft), relative_path=True)  # else its name is inside
                    (draft / "identity.txt").write_text(identity, encoding="utf-8")
                    write_digests(draft)
    return _scann_candidates(
        searcher, len(key_ME), lambda n: {"pre_reorder_num_neighbors": max(_REORDER, 2 * n)}
    )


def _is_kept(folder: Path, identity: str) -> bool:
    """Whether the folder holds the tree of these keys, undamaged."""
    path = folder / "identity.txt"
    if not path.is_file() or path.read_text(encoding="utf-8") != identity:
        return False
    try:
        check_digests(folder, what="the tree of retrieval in", remedy="it is built again")
    except ValueError as error:
        log.warning("%s", error)
        return False
    return True


def _scann_candidates(searcher, size: int, options: Callable[[int], dict]) -> Candidates:
    def candidates(query_BE: np.ndarray, n: int) -> np.ndarray:
        if n >= size:
            return np.broadcast_to(np.arange(size), (len(query_BE), size))
        row_BC, distance_BC = searcher.search_batched(query_BE, final_num_neighbors=n, **options(n))
        # Where there are too few candidates ScaNN returns index 0 with a NaN distance.
        return np.where(np.isfinite(distance_BC), row_BC.astype(np.int64), -1)

    return candidates


KINDS: dict[str, Callable[[np.ndarray, Path | None], Candidates]] = {
    "exact": _exact,
    "brute": _brute,
    "tree": _tree,
}

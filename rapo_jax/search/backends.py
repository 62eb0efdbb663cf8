"""Ways to propose nearest keys: exact numpy, ScaNN brute force, ScaNN tree. See `index.py`."""

from __future__ import annotations

import hashlib
import math
import shutil
import tempfile
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import numpy as np

Candidates = Callable[[np.ndarray, int], np.ndarray]
"""(query_BE, n) -> place_Bn: n likely nearest rows in any order, -1 where there is none."""

TREE_MIN = 16
"""ScaNN's asymmetric hashing needs at least this many points."""
_REORDER = 100
_MIN_SEARCHED = 16
"""Leaves; of more than twice as many, half are searched: benchmarks/buffer_size.py finds .76 of the
nearest keys in a tenth of them, .98 in half, at four times the time (below 1 ms a query)."""


def _exact(key_UE: np.ndarray, folder: Path | None) -> Candidates:
    key_EU = np.ascontiguousarray(key_UE.T)

    def candidates(query_BE: np.ndarray, n: int) -> np.ndarray:
        score_BU = query_BE @ key_EU
        if n >= score_BU.shape[1]:
            return np.broadcast_to(np.arange(score_BU.shape[1]), score_BU.shape)
        return np.argpartition(-score_BU, n - 1, axis=1)[:, :n]

    return candidates


def _brute(key_UE: np.ndarray, folder: Path | None) -> Candidates:
    import scann

    builder = scann.scann_ops_pybind.builder(key_UE, 1, "dot_product").score_brute_force()
    return _scann_candidates(builder.build(), len(key_UE), lambda n: {})


def _tree(key_UE: np.ndarray, folder: Path | None) -> Candidates:
    """Tree + asymmetric hashing + reordering with the exact vectors; kept in `folder` if given."""
    if len(key_UE) < TREE_MIN:
        return _brute(key_UE, folder)
    import scann

    leaves = round(math.sqrt(len(key_UE)))
    searched = min(leaves, max(_MIN_SEARCHED, leaves // 2))
    about = f"scann {version('scann')} tree {leaves} {searched} ah 2 0.2 reorder {_REORDER} "
    identity = hashlib.sha256(f"{about}{key_UE.shape}".encode() + key_UE.tobytes()).hexdigest()
    if folder is not None and _kept_identity(folder) == identity:
        searcher = scann.scann_ops_pybind.load_searcher(str(folder))
    else:
        builder = scann.scann_ops_pybind.builder(key_UE, 1, "dot_product").tree(
            leaves, searched, training_sample_size=min(len(key_UE), 250_000)
        )
        builder = builder.score_ah(2, anisotropic_quantization_threshold=0.2).reorder(_REORDER)
        searcher = builder.build()
        if folder is not None:
            _keep(searcher, folder, identity)
    return _scann_candidates(
        searcher, len(key_UE), lambda n: {"pre_reorder_num_neighbors": max(_REORDER, 2 * n)}
    )


def _kept_identity(folder: Path) -> str | None:
    mark = folder / "identity.txt"
    return mark.read_text(encoding="utf-8") if mark.is_file() else None


def _keep(searcher, folder: Path, identity: str) -> None:
    """Save a searcher so that the folder is whole or not there."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    draft = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    try:
        searcher.serialize(str(draft), relative_path=True)  # else the draft's name is inside
        (draft / "identity.txt").write_text(identity, encoding="utf-8")
        if folder.exists():
            shutil.rmtree(folder)
        draft.rename(folder)
    except BaseException:
        shutil.rmtree(draft, ignore_errors=True)
        raise


def _scann_candidates(searcher, size: int, options: Callable[[int], dict]) -> Candidates:
    def candidates(query_BE: np.ndarray, n: int) -> np.ndarray:
        if n >= size:
            return np.broadcast_to(np.arange(size), (len(query_BE), size))
        place_Bn, distance_Bn = searcher.search_batched(
            query_BE, final_num_neighbors=n, **options(n)
        )
        # Too few candidates come back as index 0 with a NaN distance.
        return np.where(np.isfinite(distance_Bn), place_Bn.astype(np.int64), -1)

    return candidates


KINDS: dict[str, Callable[[np.ndarray, Path | None], Candidates]] = {
    "exact": _exact,
    "brute": _brute,
    "tree": _tree,
}

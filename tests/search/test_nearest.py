"""Nearest keys: the same hits from numpy and ScaNN, ties, bad queries and kept trees."""

from __future__ import annotations

import subprocess
import sys
import threading

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rapo_jax.search.backends import KINDS, TREE_FROM
from rapo_jax.search.nearest import make_index


def unit(array: np.ndarray) -> np.ndarray:
    return (array / np.linalg.norm(array, axis=-1, keepdims=True)).astype(np.float32)


def clustered(count: int, *, width: int, seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    centre = rng.normal(size=(20, width))
    return unit(centre[rng.integers(0, 20, count)] + 0.5 * rng.normal(size=(count, width)))


KEYS = clustered(300, width=24, seed=0)
QUERIES = clustered(40, width=24, seed=1)
INDEXES = {kind: make_index(KEYS, kind=kind) for kind in KINDS}


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_finds_the_greatest_inner_product(kind):
    score = QUERIES.astype(np.float64) @ KEYS.T.astype(np.float64)
    index_B, similarity_B = INDEXES[kind].search(QUERIES)
    assert index_B.dtype == np.int32 and similarity_B.dtype == np.float32
    best_B = np.argmax(score, axis=1)
    if kind == "tree":  # approximate
        assert np.mean(index_B == best_B) >= 0.9
    else:
        np.testing.assert_array_equal(index_B, best_B)
    np.testing.assert_allclose(similarity_B, score[np.arange(40), index_B], atol=1e-6)


@pytest.mark.parametrize("kind", ["exact", "brute"])
def test_every_key_finds_itself(kind):
    index_B, similarity_B = INDEXES[kind].search(KEYS)
    np.testing.assert_array_equal(index_B, np.arange(len(KEYS)))
    np.testing.assert_allclose(similarity_B, 1, atol=1e-5)


@pytest.mark.parametrize("kind", ["exact", "brute"])
def test_keys_that_float32_sums_confuse_are_told_apart(kind):
    most = 2**24  # and one more are the same number in float32
    keys = [[most, 0], [most, 1], [0, 1]]
    assert np.float32(most) + np.float32(1) == np.float32(most)
    assert make_index(np.array(keys), kind=kind).search([[1, 1]])[0].tolist() == [1]


@pytest.mark.parametrize("kind", KINDS)
def test_several_neighbours_are_ordered_and_the_nearest_is_first(kind):
    index_BC, similarity_BC = INDEXES[kind].search_many(QUERIES, 7)
    assert index_BC.shape == (40, 7)
    assert (np.diff(similarity_BC, axis=1) <= 0).all()
    assert all(len(set(row)) == 7 for row in index_BC.tolist())
    np.testing.assert_array_equal(index_BC[:, 0], INDEXES[kind].search(QUERIES)[0])


@pytest.mark.parametrize("kind", ["exact", "brute"])
@settings(max_examples=30)
@given(rows=st.lists(st.integers(0, 39), min_size=1, max_size=20))
def test_a_result_does_not_depend_on_the_batch(kind, rows):
    whole = INDEXES[kind].search_many(QUERIES, 3)
    part = INDEXES[kind].search_many(QUERIES[rows], 3)
    for whole_BC, part_BC in zip(whole, part, strict=True):
        np.testing.assert_array_equal(whole_BC[rows], part_BC)


@pytest.mark.parametrize("kind", KINDS)
def test_equal_keys_are_hits_in_their_order(kind):
    keys = np.repeat(KEYS[:20], 30, axis=0)
    index_BC, similarity_BC = make_index(keys, kind=kind).search_many(KEYS[4:5], 40)
    assert index_BC[0, :30].tolist() == list(range(120, 150))
    np.testing.assert_allclose(similarity_BC[0, :30], 1, atol=1e-6)
    assert similarity_BC[0, 30] < 1 - 1e-3


@pytest.mark.parametrize("kind", KINDS)
def test_a_query_that_is_not_finite_has_no_hit_and_changes_no_other(kind):
    queries = QUERIES[:3].copy()
    queries[1, 0], queries[2, 3] = np.nan, np.inf
    index_B, similarity_B = INDEXES[kind].search(queries)
    assert index_B[0] == INDEXES[kind].search(QUERIES[:1])[0][0]
    assert index_B[1:].tolist() == [-1, -1]
    assert np.isnan(similarity_B[1:]).all()


@pytest.mark.parametrize("kind", KINDS)
def test_an_empty_batch_gives_empty_results(kind):
    index_B, similarity_B = INDEXES[kind].search(np.zeros((0, 24), np.float32))
    assert index_B.shape == similarity_B.shape == (0,)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("count", [1, 2, 15, 16, 17])
def test_few_keys_are_searched_too_and_missing_neighbours_are_marked(kind, count):
    index = make_index(KEYS[:count], kind=kind)
    index_BC, similarity_BC = index.search_many(KEYS[:2], count + 2)
    assert sorted(index_BC[0, :count].tolist()) == list(range(count))
    assert (index_BC[:, count:] == -1).all() and np.isnan(similarity_BC[:, count:]).all()


@pytest.mark.parametrize("kind", ["exact", "brute"])
def test_zeros_of_both_signs_make_equal_keys(kind):
    keys = np.array([[0.0, 1.0], [-0.0, 1.0], [0.0, 1.0]])
    assert make_index(keys, kind=kind).search_many([[1.0, 1.0]], 3)[0].tolist() == [[0, 1, 2]]


def test_of_keys_that_tie_the_first_are_the_hits_of_a_zero_query():
    for kind in ("exact", "brute"):
        index_BC, similarity_BC = INDEXES[kind].search_many(np.zeros((2, 24), np.float32), 3)
        assert index_BC.tolist() == [[0, 1, 2]] * 2 and not similarity_BC.any()


@pytest.mark.parametrize("kind", ["auto", *KINDS])
def test_keys_that_are_not_finite_are_refused_before_they_reach_scann(kind):
    keys = KEYS.copy()
    keys[5, 2] = np.nan
    with pytest.raises(ValueError, match="key row 5 .* not finite"):
        make_index(keys, kind=kind)


def test_no_keys_and_wrong_shapes_and_unknown_kinds_are_refused():
    with pytest.raises(ValueError, match="needs a key"):
        make_index(np.zeros((0, 24), np.float32), kind="auto")
    with pytest.raises(ValueError, match="retrieval.index='hnsw'"):
        make_index(KEYS, kind="hnsw")
    with pytest.raises(ValueError, match="needs \\[B, 24\\]"):
        INDEXES["exact"].search(np.zeros((2, 23), np.float32))
    with pytest.raises(ValueError, match="n=0"):
        INDEXES["exact"].search_many(QUERIES, 0)


def test_auto_takes_brute_force_for_few_keys_and_the_tree_for_many():
    assert make_index(KEYS, kind="auto").kind == "brute"
    many = np.random.default_rng(0).normal(size=(TREE_FROM, 2)).astype(np.float32)
    assert make_index(many, kind="auto").kind == "tree"


def test_without_scann_the_exact_search_replaces_it_with_a_warning(monkeypatch, caplog):
    monkeypatch.setitem(sys.modules, "scann", None)  # Python's own mark of a failing import
    kinds = [make_index(KEYS, kind=kind).kind for kind in ("auto", "brute", "tree")]
    assert kinds == ["exact"] * 3
    assert caplog.text.count("exact numpy search instead") == 3


def test_a_kept_tree_is_loaded_even_after_its_folder_moved(tmp_path):
    built = make_index(KEYS, kind="tree", folder=tmp_path / "a" / "tree")
    (tmp_path / "a").rename(tmp_path / "b")
    stamp = (tmp_path / "b" / "tree" / "identity.txt").stat().st_mtime_ns
    loaded = make_index(KEYS, kind="tree", folder=tmp_path / "b" / "tree")
    assert (tmp_path / "b" / "tree" / "identity.txt").stat().st_mtime_ns == stamp
    for ours, theirs in zip(
        built.search_many(QUERIES, 5), loaded.search_many(QUERIES, 5), strict=True
    ):
        np.testing.assert_array_equal(ours, theirs)


def test_a_damaged_kept_tree_is_reported_and_built_anew(tmp_path, caplog):
    folder = tmp_path / "tree"
    built = make_index(KEYS, kind="tree", folder=folder)
    file = max(folder.iterdir(), key=lambda path: path.stat().st_size)
    whole = file.read_bytes()
    file.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    again = make_index(KEYS, kind="tree", folder=folder)
    assert f"{file.name} has other contents than were saved; it is built again" in caplog.text
    assert len(file.read_bytes()) == len(whole)
    assert again.size == built.size
    caplog.clear()
    make_index(KEYS, kind="tree", folder=folder)
    assert not caplog.text


def test_a_kept_tree_of_other_keys_is_built_anew(tmp_path):
    make_index(KEYS[:200], kind="tree", folder=tmp_path / "tree")
    index = make_index(KEYS, kind="tree", folder=tmp_path / "tree")
    assert np.mean(index.search(KEYS[200:])[0] == np.arange(200, 300)) >= 0.9


HOLDER = """
import subprocess
import sys
import threading
from pathlib import Path
from rapo_jax.io.files import locked
with locked(Path(sys.argv[1])):
    print("mine", flush=True)
    sys.stdin.read()
"""


def test_a_tree_that_another_process_is_building_is_waited_for_and_loaded(tmp_path):
    folder, built = tmp_path / "tree", []
    command = [sys.executable, "-c", HOLDER, str(tmp_path / "tree.lock")]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdout.readline() == "mine\n"
        thread = threading.Thread(
            target=lambda: built.append(make_index(KEYS, kind="tree", folder=folder))
        )
        thread.start()
        thread.join(timeout=1.0)
        assert not built and not folder.exists()
        other.stdin.close()
        thread.join(timeout=60)
    assert built and (folder / "identity.txt").is_file()

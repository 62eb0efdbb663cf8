"""The estimate of an index: counts from a sample, sizes by arithmetic, measured times."""

from __future__ import annotations

import gzip
import json
import random

import pytest

from rapo_jax.search.index.estimate import ID_BYTES, SAMPLE, IndexEstimate, estimate, free_bytes
from tests.search.index.corpora import build, ngram_encoder, passages, write_corpus


def test_a_corpus_within_the_sample_is_counted_exactly_and_sized_as_it_will_be(tmp_path):
    corpus = write_corpus(tmp_path / "c.jsonl", passages(25))
    found = estimate(corpus, ngram_encoder(), rows=10, kind="auto")
    assert (found.passages, found.exact, found.shards) == (25, True, 3)
    build(corpus, tmp_path / "index")
    shards = list((tmp_path / "index").glob("shard-*"))
    for name, wanted in (("keys.npy", found.keys_bytes), ("*t*s.*n*", found.texts_bytes)):
        held = sum(p.stat().st_size for s in shards for p in s.glob(name) if p.suffix != ".json")
        assert held == pytest.approx(wanted, abs=128 * 2 * len(shards))  # headers of .npy
    assert found.trees_bytes == found.serve_bytes == 0 and found.trees_s == 0
    assert found.build_bytes == 25 * ID_BYTES


@pytest.mark.parametrize("zipped", [False, True])
def test_a_larger_corpus_is_counted_by_the_share_of_its_bytes(tmp_path, zipped):
    count = 10 * SAMPLE
    noise = random.Random(0)  # no compression makes it small beside the blocks of a gzip reader
    rows = [
        r | {"contents": f"{r['contents']} {noise.randbytes(128).hex()}"} for r in passages(count)
    ]
    lines = "".join(json.dumps(record) + "\n\n" for record in rows).encode()
    path = tmp_path / "c.jsonl"
    path.write_bytes(gzip.compress(lines) if zipped else lines)
    found = estimate(str(path), ngram_encoder(), rows=1000, kind="exact")
    # ids grow along this corpus; a gzip file is read in blocks, and its sample here is but a few
    assert not found.exact
    assert found.passages == pytest.approx(count, rel=0.6 if zipped else 0.2)


def test_a_tree_costs_half_a_byte_a_number_and_three_copies_of_a_shard(tmp_path):
    corpus = write_corpus(tmp_path / "c.jsonl", passages(40))
    found = estimate(corpus, ngram_encoder(), rows=20, kind="tree")
    assert found.trees_bytes == found.serve_bytes == 40 * (64 // 2 + 4)
    assert found.build_bytes == 40 * ID_BYTES + 20 * 64 * 4 * 3 and found.trees_s > 0


def test_the_lines_give_size_memory_time_and_a_warning_of_a_full_disk():
    wiki = IndexEstimate(
        passages=21_015_324,
        exact=False,
        shards=23,
        texts_bytes=14_000_000_000,
        keys_bytes=16_100_000_000,
        trees_bytes=4_100_000_000,
        build_bytes=4_800_000_000,
        serve_bytes=4_100_000_000,
        texts_s=600.0,
        embed_s=36_000.0,
        trees_s=80.0,
    )
    first, disk, memory, time, warning = wiki.lines(free_bytes=10**10)
    assert first == "about 21015324 passages in 23 shards; estimate from a sample:"
    assert disk == ("disk 34.2 GB (texts 14.0 GB, keys 16.1 GB, trees 4.1 GB), free are 10.0 GB")
    assert memory == "memory 4.8 GB to build, 4.1 GB to search"
    assert time == "time 10 h 11 min (texts 10 min, embedding 10 h 0 min, trees 80 s)"
    assert warning == "WARNING: this disk is too small for it"
    assert len(wiki.lines(free_bytes=10**12)) == 4


def test_free_space_of_a_folder_that_is_not_there_yet_is_that_of_its_disk(tmp_path):
    assert free_bytes(tmp_path / "a" / "b") > 0

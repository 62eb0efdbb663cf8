"""Building an index: bad input, interruptions, and the files in its folder."""

from __future__ import annotations

import gzip
import json

import numpy as np
import pytest

from rapo_jax.io.jsonl import MAX_LINE_BYTES
from rapo_jax.search.index.build import corpus_identity, shard_rows
from rapo_jax.search.index.search import open_index
from rapo_jax.search.index.texts import PassageTexts
from tests.search.index.corpora import build, ngram_encoder, passages, write_corpus


def bytes_of(folder):
    """Every file but ScaNN's, of which two builds differ a little."""
    files = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in files
        if "tree" not in path.parts
    }


def test_a_corpus_is_known_by_both_its_ends(tmp_path):
    identities = []
    for changed in (None, 0, -1):
        corpus = bytearray(1 << 18)
        if changed is not None:
            corpus[changed] = 1
        (tmp_path / "c").write_bytes(corpus)
        identities.append(corpus_identity(str(tmp_path / "c")))
    assert len({each["ends"] for each in identities}) == 3
    assert {each["bytes"] for each in identities} == {1 << 18}


class Killed(Exception):
    pass


def test_an_index_holds_every_passage_in_its_order_with_its_id(tmp_path):
    wanted = list(passages(25))
    manifest = build(write_corpus(tmp_path / "c.jsonl", wanted), tmp_path / "index")
    assert manifest["passages"] == 25 and manifest["shards"] == 3 and manifest["malformed"] == 0
    texts = open_index(tmp_path / "index").texts
    assert [texts.document(i)._asdict() for i in range(25)] == wanted
    assert texts[8:12] == [record["contents"] for record in wanted[8:12]] and len(texts) == 25
    assert texts[-1] == wanted[-1]["contents"]
    with pytest.raises(IndexError):
        texts[25]


@pytest.mark.parametrize("count", [10, 20, 1])
def test_no_shard_is_empty_where_the_passages_fill_the_others(tmp_path, count):
    manifest = build(write_corpus(tmp_path / "c.jsonl", passages(count)), tmp_path / "index")
    assert manifest["shards"] == -(-count // 10)
    assert len(list((tmp_path / "index").glob("shard-*"))) == manifest["shards"]


@pytest.mark.parametrize("stop", range(1, 7))
def test_a_build_killed_after_any_step_is_resumed_and_ends_with_the_same_files(tmp_path, stop):
    records = [*passages(25), {"id": "3", "contents": "again"}, {"id": "x"}]
    corpus = write_corpus(tmp_path / "c.jsonl", records)
    build(corpus, tmp_path / "whole")
    said = []

    def say(line):
        said.append(line)
        if len(said) == stop:
            raise Killed

    with pytest.raises(Killed):
        build(corpus, tmp_path / "killed", say=say)
    build(corpus, tmp_path / "killed")
    assert bytes_of(tmp_path / "killed") == bytes_of(tmp_path / "whole")


def test_a_build_killed_inside_a_shard_is_resumed_and_ends_with_the_same_files(tmp_path):
    corpus = write_corpus(tmp_path / "c.jsonl", passages(25))
    build(corpus, tmp_path / "whole")
    log = []

    def failing(texts):
        log.append(texts)
        if len(log) == 2:
            raise Killed
        return np.ones((len(texts), 64), np.float32)

    encoder = ngram_encoder()
    with pytest.raises(Killed):
        build(corpus, tmp_path / "killed", encoder=encoder._replace(load=lambda folder: failing))
    for number in range(2):  # the first shard was embedded by another encoder
        (tmp_path / "killed" / "shard-00000" / ("keys.json", "keys.npy")[number]).unlink()
    build(corpus, tmp_path / "killed")
    assert bytes_of(tmp_path / "killed") == bytes_of(tmp_path / "whole")


def test_a_finished_index_is_not_built_again(tmp_path):
    corpus, log = write_corpus(tmp_path / "c.jsonl", passages(12)), []
    first = build(corpus, tmp_path / "index", encoder=ngram_encoder(log=log))
    assert sum(map(len, log)) == 12
    assert build(corpus, tmp_path / "index", encoder=ngram_encoder(log=log)) == first
    assert sum(map(len, log)) == 12


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        ({"rows": 11}, "rows"),
        ({"encoder": ngram_encoder(width=32)}, "encoder"),
        ({"kind": "exact"}, "kind"),
    ],
)
def test_a_folder_of_another_index_is_refused_with_the_difference(tmp_path, changes, key):
    corpus = write_corpus(tmp_path / "c.jsonl", passages(12))
    build(corpus, tmp_path / "index")
    with pytest.raises(ValueError, match=rf"search_index.folder=.*another {key} \("):
        build(corpus, tmp_path / "index", **changes)


def test_another_corpus_in_the_same_folder_is_refused(tmp_path):
    build(write_corpus(tmp_path / "c.jsonl", passages(12)), tmp_path / "index")
    other = write_corpus(tmp_path / "c.jsonl", passages(13))
    with pytest.raises(ValueError, match="another corpus"):
        build(other, tmp_path / "index")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("")
    with pytest.raises(ValueError, match="holds something else than an index"):
        build(other, tmp_path / "mine")


def test_a_corpus_whose_middle_changed_between_two_calls_is_refused(tmp_path):
    records = [{"id": str(i), "contents": f"{i:05d}" * 4000} for i in range(25)]
    corpus = write_corpus(tmp_path / "c.jsonl", records)
    with pytest.raises(Killed):
        build(corpus, tmp_path / "index", say=lambda line: (_ for _ in ()).throw(Killed))
    records[5]["contents"] = "x" * 20_000
    write_corpus(tmp_path / "c.jsonl", records)
    with pytest.raises(ValueError, match="other passages than the corpus now"):
        build(corpus, tmp_path / "index")


BAD = [
    b'{"id": "a", "contents": "fine"}',
    b'{"id": "a", "contents": "again"}',
    b'{"id": 7, "title": "T", "text": "also fine"}',
    b'{"id": "b", "contents": 3}',
    b'{"id": 1.5, "contents": "half"}',
    b'{"id": "c", "passage": "wrong column"}',
    b'{"contents": "nameless"}',
    b'{"id": "d", "contents": "\xff"}',
    b'["id", "contents"]',
    b'{"id": "e", "contents": "cut',
    b'{"id": "f", "contents": "' + b"x" * (MAX_LINE_BYTES + 1) + b'"}',
    b'{"id": "g", "contents": "  "}',
]


@pytest.mark.parametrize("zipped", [False, True])
def test_bad_lines_are_counted_in_the_manifest_with_their_numbers(tmp_path, zipped):
    data = b"\n".join(BAD)
    (tmp_path / "c.jsonl").write_bytes(gzip.compress(data, 1) if zipped else data)
    said = []
    manifest = build(str(tmp_path / "c.jsonl"), tmp_path / "index", say=said.append)
    assert (manifest["passages"], manifest["lines"], manifest["malformed"]) == (2, 12, 10)
    assert [number for number, _ in manifest["malformed_lines"]] == [
        2,
        4,
        5,
        6,
        7,
        8,
        9,
        10,
        11,
        12,
    ]
    assert any("2 records of 12 lines, 10 malformed (line 2: duplicate id" in x for x in said)
    documents = open_index(tmp_path / "index").texts
    assert documents.document(1).contents == '"T"\nalso fine'


def test_a_bad_line_ends_the_build_under_the_rule_fail(tmp_path):
    (tmp_path / "c.jsonl").write_bytes(b"\n".join(BAD))
    with pytest.raises(ValueError, match="line 2: duplicate id 'a'.*search_index.malformed='skip'"):
        build(str(tmp_path / "c.jsonl"), tmp_path / "index", malformed="fail")


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "it is empty"),
        (b"\n\n", "it is empty"),
        (b'{"name": 1}\n', "no usable line .*id is missing"),
        (gzip.compress(b'{"id": 1, "contents": "a"}\n' * 9999)[:-20], "damaged after line"),
    ],
)
def test_a_file_that_is_no_corpus_is_refused_and_leaves_no_index(tmp_path, data, message):
    (tmp_path / "c.jsonl").write_bytes(data)
    with pytest.raises(ValueError, match=message):
        build(str(tmp_path / "c.jsonl"), tmp_path / "index")
    with pytest.raises(ValueError, match="no finished index is there"):
        open_index(tmp_path / "index")


def test_a_missing_corpus_is_an_error_of_one_line(tmp_path):
    with pytest.raises(ValueError, match="none.jsonl: cannot be read"):
        build(str(tmp_path / "none.jsonl"), tmp_path / "index")


def test_a_folder_that_lost_bytes_is_refused(tmp_path):
    build(write_corpus(tmp_path / "c.jsonl", passages(12)), tmp_path / "index")
    shard = tmp_path / "index" / "shard-00000"
    (shard / "texts.bin").write_bytes((shard / "texts.bin").read_bytes()[:-1])
    with pytest.raises(ValueError, match="texts.bin: .* build the index again"):
        PassageTexts([shard])
    with pytest.raises(ValueError, match="texts.bin has .* bytes instead of .*; build it again"):
        open_index(tmp_path / "index")
    (tmp_path / "index" / "digests.json").unlink()
    (shard / "keys.npy").write_bytes(b"")
    with pytest.raises(ValueError, match="keys cannot be read"):
        open_index(tmp_path / "index")


def test_a_flipped_bit_in_any_file_of_an_index_is_refused_with_the_name_of_the_file(tmp_path):
    build(write_corpus(tmp_path / "c.jsonl", passages(12)), tmp_path / "index")
    open_index(tmp_path / "index")
    files = [path for path in (tmp_path / "index" / "shard-00000").iterdir() if path.is_file()]
    assert len(files) > 2
    for path in files:
        whole = path.read_bytes()
        path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
        with pytest.raises(ValueError, match=f"{path.name} has other contents than were saved"):
            open_index(tmp_path / "index")
        path.write_bytes(whole)


def test_an_embedding_that_is_not_finite_is_refused(tmp_path):
    corpus = write_corpus(tmp_path / "c.jsonl", passages(3))
    encoder = ngram_encoder()._replace(
        load=lambda folder: lambda texts: np.full((len(texts), 64), np.nan)
    )
    with pytest.raises(ValueError, match="search_index.encoder: 3 texts gave rows .3, 64., not fi"):
        build(corpus, tmp_path / "index", encoder=encoder)


def test_a_shard_is_as_large_as_the_memory_allows():
    assert shard_rows(memory_mb=3, width=1024) == 256  # 3 MiB of 3 copies of 4 KiB rows
    assert shard_rows(memory_mb=1, width=10**9) == 1


def test_the_manifest_names_the_corpus_and_the_encoder(tmp_path):
    build(write_corpus(tmp_path / "c.jsonl", passages(12)), tmp_path / "index")
    found = json.loads((tmp_path / "index" / "manifest.json").read_text())
    assert found["corpus"]["name"] == "c.jsonl" and found["encoder"]["name"] == "ngram"
    assert len(found["sha256"]) == 64 and found["on_malformed"] == "skip"

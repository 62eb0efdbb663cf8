"""Search in an index on disk: exact, by trees, as a tool and over HTTP."""

from __future__ import annotations

import shutil

import numpy as np
import pytest
import requests

from rapo_jax.config import SearchSettings, ToolsSettings
from rapo_jax.search.index.build import SHARES, measure
from rapo_jax.search.index.search import open_index
from rapo_jax.search.server import SearchServer, main
from rapo_jax.tools import close_tools, make_tools
from rapo_jax.tools.observation import Observation
from rapo_jax.tools.search import index_search
from tests.search.index.corpora import build, passages, write_corpus

COUNT = 120
QUERIES = [f"bread item{i} lamp" for i in range(0, COUNT, 7)]


@pytest.fixture(scope="module")
def exact(tmp_path_factory):
    folder = tmp_path_factory.mktemp("exact")
    build(write_corpus(folder / "c.jsonl", passages(COUNT)), folder / "index", rows=50)
    return open_index(folder / "index")


@pytest.fixture(scope="module")
def trees(tmp_path_factory):
    folder = tmp_path_factory.mktemp("trees")
    corpus = write_corpus(folder / "c.jsonl", passages(COUNT))
    manifest = build(corpus, folder / "index", rows=50, kind="tree")
    assert manifest["trees"] == 3
    return open_index(folder / "index")


def test_the_nearest_of_all_shards_are_those_of_one_product_with_all_keys(exact):
    key_ME = np.concatenate([np.asarray(s.key_ME, np.float32) for s in exact.shards])
    for query_E in exact.encode(QUERIES):
        score_M = key_ME @ query_E
        wanted = np.argsort(-score_M, kind="stable")[:5]
        found = exact.nearest(query_E, 5)
        assert [place for place, _ in found] == wanted.tolist()
        np.testing.assert_allclose([x for _, x in found], score_M[wanted], atol=1e-6)


def test_a_query_has_the_same_hits_alone_and_among_others(exact, trees):
    for index in (exact, trees):
        together = index(QUERIES, 3)
        assert [index([query], 3)[0] for query in QUERIES] == together
        assert index([], 3) == []


def test_fewer_passages_than_asked_for_are_all_of_them(tmp_path):
    build(write_corpus(tmp_path / "c.jsonl", passages(2)), tmp_path / "index")
    (hits,) = open_index(tmp_path / "index")(["ada"], 5)
    assert {document.id for document, _ in hits} == {"0", "1"}


def test_trees_give_the_hits_of_exact_search_with_every_leaf_searched(exact, trees):
    trees.share = 1.0
    query_BE = trees.encode(QUERIES)
    for row, wanted in zip(query_BE, exact.exact(query_BE, 3), strict=True):
        # every shard has fewer passages than are proposed, so the keys decide among all
        found = trees.nearest(row, 3)
        assert [place for place, _ in found] == [place for place, _ in wanted]
        np.testing.assert_allclose([x for _, x in found], [x for _, x in wanted], atol=1e-6)


def test_the_least_share_of_leaves_that_reaches_the_recall_is_kept(exact, trees):
    found = measure(trees, goal=0.5)
    assert found["leaves_share"] in SHARES and found["recall_at_3"] >= 0.5
    assert found["recall_queries"] == 100
    assert measure(exact, goal=0.5)["recall_queries"] == 0  # nothing to lose


def test_the_share_of_leaves_is_the_share_that_is_searched(tmp_path):
    build(write_corpus(tmp_path / "c.jsonl", passages(600)), tmp_path / "i", rows=600, kind="tree")
    index = open_index(tmp_path / "i")
    (shard,), (query_E,) = index.shards, index.encode(QUERIES[:1])
    assert shard.leaves == 24  # the root of 600
    least, most, whole = (len(shard.nearest(query_E, 600, share)[0]) for share in (0.0, 0.9, 1.0))
    assert 0 < least < most < whole == 600


def test_few_passages_get_no_trees(exact):
    assert all(shard.leaves == 0 for shard in exact.shards)


def test_the_tool_cuts_at_a_passage_border_and_answers_hostile_queries(exact):
    asked = []

    def counting(queries, topk):
        asked.extend(queries)
        return exact(queries, topk)

    room = len("[1] Title 3: ") + 60
    tool = index_search(counting, passages=3, fits=lambda text: len(text) <= room)
    first, empty, odd = tool(["Title 3 item3", " ", "\ud800\x00"])
    assert first.outcome == "ok" and first.text.startswith("[1] Title 3: bread violin")
    assert "[2]" not in first.text
    assert empty == Observation("error: empty query", "empty") and odd.outcome == "ok"
    assert tool(["Title 3 item3"]) == [first] and len(asked) == 2


def test_the_local_search_uses_the_index_that_the_settings_name(exact):
    settings = ToolsSettings(
        passages=2, workers=1, search=SearchSettings("local", index=str(exact.folder))
    )
    tools = make_tools(settings, documents=[], encode=lambda texts: np.zeros((len(texts), 1)))
    (found,) = tools["search"](["Title 9 item9"])
    assert found.text.startswith("[1] Title 9: ") and "\n[2] " in found.text
    close_tools(tools)


@pytest.mark.parametrize("text", ["", '{"encoder": {"na', "{}", "[]", "null"])
@pytest.mark.parametrize("name", ["manifest.json", "texts.json", "shard-00000/keys.json"])
def test_a_torn_file_of_an_index_is_named_with_the_remedy(exact, tmp_path, name, text):
    shutil.copytree(exact.folder, tmp_path / "index")
    (tmp_path / "index" / "digests.json").unlink()  # as in an index of before there were digests
    (tmp_path / "index" / name).write_text(text)
    with pytest.raises(ValueError, match=rf"{name}: .*; build the index again"):
        open_index(tmp_path / "index")


def test_the_server_serves_an_index_in_the_same_wire_format(exact):
    server = SearchServer(exact, passages=len(exact), topk=3, host="127.0.0.1", port=0)
    body = {"queries": ["Title 9 item9"], "topk": 1, "return_scores": True}
    (hits,) = requests.post(f"{server.url}/retrieve", json=body, timeout=20).json()["result"]
    assert hits[0]["document"]["id"] == "9" and hits[0]["score"] > 0
    health = requests.get(f"{server.url}/health", timeout=20).json()
    assert health == {"status": "ok", "passages": COUNT}
    server.close()


def test_the_server_refuses_a_folder_without_an_index(tmp_path, capsys):
    with pytest.raises(SystemExit, match="2"):
        main([f"--index={tmp_path}", "--port=0"])
    assert "no finished index is there; build it with" in capsys.readouterr().err
    with pytest.raises(SystemExit, match="2"):
        main([f"--index={tmp_path}", "--corpus=c.jsonl"])

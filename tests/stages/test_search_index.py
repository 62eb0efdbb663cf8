"""The stage that builds an index, with both encoders, and the checks of its keys."""

from __future__ import annotations

import json
import re

import jax
import numpy as np
import pytest

from rapo_jax.config.read import read_settings
from rapo_jax.distributed import Stopped
from rapo_jax.io.files import LOCK
from rapo_jax.model.encoder import load_encoder, tokenize_texts
from rapo_jax.search.index.search import open_index
from rapo_jax.stages import search_index
from rapo_jax.stages.job import prepare_workdir, run_stages
from rapo_jax.stages.search_index import by_length
from tests.model.test_encoder import TEXTS, numpy_key, random_tensors, write_encoder


def index_with(small_config, tmp_path, texts, **changes):
    """Runs the stage on `texts`; returns the workdir."""
    corpus, workdir = tmp_path / "corpus.jsonl", tmp_path / "run"
    lines = [json.dumps({"id": i, "contents": text}) for i, text in enumerate(texts)]
    corpus.write_text("\n".join(lines))
    keys = {f"search_index.{key}": value for key, value in changes.items()}
    config = small_config({"stages": ("search_index",), "search_index.corpus": str(corpus)} | keys)
    fresh = prepare_workdir(workdir, config)
    assert not fresh
    run_stages(read_settings(config), workdir, fresh=fresh)
    return workdir


def test_the_stage_tells_its_estimate_first_and_opens_no_run(tmp_path, small_config, capsys):
    workdir = index_with(small_config, tmp_path, ["who is anna ?", "bread and flour"], width=32)
    said = capsys.readouterr().out.splitlines()
    assert said[0] == "[search_index] 2 passages in 1 shards; estimate from a sample:"
    assert said[1].startswith("[search_index] disk 0.0 MB")
    assert said[-1] == f"[search_index] search it with --config.tools.search.index={workdir}/" + (
        "search_index"
    )
    assert [path.name for path in workdir.iterdir()] == ["search_index"]
    ((document, score),) = open_index(workdir / "search_index")(["flour"], 1)[0]
    assert document.id == "1" and score > 0


def test_a_finished_index_is_read_by_many_and_locked_by_none(tmp_path, small_config):
    lock = index_with(small_config, tmp_path, ["anna"], width=32) / "search_index" / LOCK
    assert lock.exists()
    lock.unlink()
    index_with(small_config, tmp_path, ["anna"], width=32)
    assert not lock.exists()


def test_a_signal_stops_the_build_and_the_next_call_continues(tmp_path, small_config, monkeypatch):
    monkeypatch.setattr(search_index, "stop_requested", lambda: True)
    with pytest.raises(Stopped, match="finished parts of the index are kept"):
        index_with(small_config, tmp_path, ["anna", "bread"], width=32)
    monkeypatch.undo()
    workdir = index_with(small_config, tmp_path, ["anna", "bread"], width=32)
    ((document, _),) = open_index(workdir / "search_index")(["bread"], 1)[0]
    assert document.id == "1"


def test_minilm_embeds_a_corpus_on_the_device_and_its_queries_on_the_host(tmp_path, small_config):
    encoder = write_encoder(tmp_path / "bert")
    texts = [text for text in TEXTS if text]
    changes = {"encoder": "minilm", "encoder_folder": str(encoder), "encoder_tokens": 16}
    workdir = index_with(small_config, tmp_path, texts, **changes)
    index = open_index(workdir / "search_index")
    for i, text in enumerate(texts):
        ((document, score),) = index([text], 1)[0]
        assert document.id == str(i) and score == pytest.approx(1, abs=2e-3)  # keys are float16


def test_texts_embedded_by_length_come_back_in_their_order(tmp_path):
    module, params, tokenizer = load_encoder(write_encoder(tmp_path / "bert"))
    texts = ["anna " * (1 + (7 * i) % 13) for i in range(20)] + ["", "mother"]
    token_BX, length_B = tokenize_texts(tokenizer, texts, width=16)
    tensors = random_tensors()
    wanted = [numpy_key(tensors, row[:n]) for row, n in zip(token_BX, length_B, strict=True)]

    def tokenize(some):
        return tokenize_texts(tokenizer, some, width=16)

    found = by_length(module.apply, params, tokenize, tokens=16)(texts)
    np.testing.assert_allclose(found, wanted, atol=1e-5)
    assert len(jax.local_devices()) > 1  # the rows were spread over them


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"stages": ("search_index",)}, "search_index.corpus='': name JSON lines of {id, contents"),
        ({"search_index.encoder": "bert"}, "search_index.encoder='bert': expected one of ngram"),
        ({"search_index.kind": "brute"}, "search_index.kind='brute': expected one of auto, exact"),
        ({"search_index.memory_mb": 10}, "search_index.memory_mb=10: a shard takes at least 64"),
        ({"search_index.recall": 1.5}, "search_index.recall=1.5: a share of more than 0"),
        ({"search_index.width": 0}, "search_index.width=0: must be at least 1"),
        (
            {"tools.search.index": "x", "tools.search.kind": "serper"},
            "tools.search.index='x': only tools.search.kind='local' reads it, not 'serper'",
        ),
    ],
)
def test_keys_that_cannot_work_are_refused(small_config, changes, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        read_settings(small_config(changes))

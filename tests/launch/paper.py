"""What configs/qwen7b.py reads, small and in the layouts of the publishers."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rapo_jax.search.corpus import exact_search, read_corpus
from rapo_jax.search.server import SearchServer
from rapo_jax.text.protocol import SYSTEM_PROMPT
from rapo_jax.text.tokens import build_tokenizer
from tests.model.checkpoints import make_model, save_model
from tests.model.test_encoder import write_encoder
from tests.tasks.published.fixtures import FIXTURES, gsm, lines, wiki


def write_data(folder: Path) -> Path:
    """$RAPO_DATA with a small model of the same kind, in three files."""
    model = folder / "models" / "Qwen2.5-7B-Instruct"
    save_model(make_model("qwen2", vocab_size=512), model, shard="80KB")
    build_tokenizer(model, [SYSTEM_PROMPT, "eggs? Who?"] * 2, vocab_size=512)
    write_encoder(folder / "models" / "all-MiniLM-L6-v2")
    for fixture in FIXTURES:
        fixture.write(folder / "questions" / fixture.set / fixture.file, fixture.records)
    hotpot = folder / "questions" / "hotpotqa" / "hotpot_dev_distractor_v1.json"
    hotpot.write_text(json.dumps([wiki(f"q{n}") for n in range(200)]))
    (folder / "questions" / "gsm8k" / "main" / "test-00000-of-00001.parquet").unlink()
    lines(folder / "questions" / "gsm8k" / "test.jsonl", [gsm(n) for n in range(200)])
    answer = "<think>so</think><answer>\\boxed{A}</answer>"
    traces = [{"question": "Who?", "response": answer, "reward": 1.0}]
    lines(folder / "traces" / "aepo_qwen3_14b.jsonl", traces)
    return folder


@contextmanager
def search_server(folder: Path) -> Iterator[str]:
    """The address of a server of one passage."""
    lines(folder / "corpus.jsonl", [{"id": 1, "contents": "A is b."}])
    documents, _ = read_corpus(str(folder / "corpus.jsonl"), malformed="fail")
    index = exact_search(documents, width=16)
    server = SearchServer(index, passages=3, topk=3, host="127.0.0.1", port=0)
    try:
        yield server.url
    finally:
        server.close()

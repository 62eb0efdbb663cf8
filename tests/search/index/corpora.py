"""Synthetic corpora, and a small encoder for indexes of them."""

from __future__ import annotations

import json

from rapo_jax.config import SearchIndexSettings
from rapo_jax.search.index.build import build_index
from rapo_jax.search.index.keys import CorpusEncoder, FittedEncoder
from rapo_jax.search.ngram import NgramEncoder

WORDS = "ada kavel dorim bread flour river stone lamp north violin copper harvest".split()


def passages(count):
    """{id, contents} of so many passages, each of words and a different number."""
    for i in range(count):
        words = [WORDS[(i * step) % len(WORDS)] for step in (1, 3, 5, 7)]
        yield {"id": str(i), "contents": f'"Title {i}"\n{" ".join(words)} item{i} of {i % 7}'}


def write_corpus(path, records):
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    return str(path)


def ngram_encoder(width=64, log=None):
    def fit(texts):
        encoder = NgramEncoder.fit(texts, width=width, orders=(1, 2))
        return FittedEncoder(encoder, encoder.save)

    def load(folder):
        encoder = NgramEncoder.load(folder)

        def encode(texts):
            if log is not None:
                log.append(list(texts))
            return encoder(texts)

        return encode

    return CorpusEncoder({"name": "ngram", "width": width}, fit, load)


def build(corpus, folder, *, encoder=None, rows=10, malformed="skip", kind="auto", say=print):
    settings = SearchIndexSettings(corpus=corpus, malformed=malformed, kind=kind)
    return build_index(settings, folder, encoder or ngram_encoder(), rows=rows, log=say)

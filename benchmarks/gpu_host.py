"""The host's side of benchmarks/gpu.py: a tokenizer, synthetic documents and a local search.

A policy with random weights calls tools about as often as a trained one. Nothing is downloaded.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh

from benchmarks.gpu_sizes import Sizes
from benchmarks.random_model import CORPUS
from rapo_jax.config import ModelSettings, RolloutSettings, Settings
from rapo_jax.environment import Environment
from rapo_jax.sampling.sampler import Sampler
from rapo_jax.search.ngram import NgramEncoder
from rapo_jax.text.tokens import Tokens, build_tokenizer, load_tokens
from rapo_jax.tools.observation import Observation
from rapo_jax.tools.search import local_search

CALL_EVERY = 64
"""One in so many tokens of the vocabulary ends a step: one of four by an answer, else by a call."""


class Host(NamedTuple):
    sampler: Sampler
    environment: Environment


def make_host(model: ModelSettings, s: Settings, sizes: Sizes, mesh: Mesh, workdir: Path) -> Host:
    """A sampler whose random policy calls a local search (see `calling`), and its environment."""
    z = sizes
    r: RolloutSettings = dataclasses.replace(
        s.rollout,
        prompt_tokens=max(z.prompt, 128),
        step_tokens=2 * z.ticks,
        observation_tokens=z.ticks,
        retrieved_tokens=z.ticks,
        max_tokens=max(z.prompt, 128) + (s.rollout.max_calls + 1) * 3 * z.ticks,
        slots=0,
        driver="jit",
    )
    build_tokenizer(workdir / "tokenizer", CORPUS, vocab_size=1024)
    tokens = calling(load_tokens(workdir / "tokenizer", vocab_size=model.vocab))
    documents = [f"fact {n}: this is about word number {n}" for n in range(1000)]
    encode = NgramEncoder.fit(documents, width=256, orders=(1, 2))
    environment = Environment(
        tokens,
        {"search": local_search(documents, encode, passages=3), "python": no_python},
        observation_tokens=r.observation_tokens,
        retrieved_tokens=r.retrieved_tokens,
    )
    sampler = Sampler(
        model,
        r,
        tokens,
        environment,
        mesh,
        system="Answer the question.",
        embed=lambda key_UE: key_UE,
        query_shape=jax.ShapeDtypeStruct((8,), np.float32),
    )
    return Host(sampler, environment)


def no_python(calls: list[str]) -> list[Observation]:
    """Empty results: the random policy never writes a program."""
    return [Observation("", "empty") for _ in calls]


def calling(tokens: Tokens) -> Tokens:
    """Gives the tokenizer's unused ids a text: words, whole calls, whole answers.

    A policy with random weights draws all tokens about equally often, so its steps are about
    CALL_EVERY tokens long and end with a call as a trained policy's, sometimes with an answer.
    """
    texts = [b" word"] * (4 * CALL_EVERY)
    for at in range(0, len(texts), CALL_EVERY):
        texts[at] = b"<search>word number 7</search>"
    texts[0] = b"<answer>\\boxed{it}</answer>"
    free = [text or texts[i % len(texts)] for i, text in enumerate(tokens.bytes_V)]
    return dataclasses.replace(tokens, bytes_V=free)

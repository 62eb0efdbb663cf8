"""The world of benchmarks/gpu.py: a random policy that calls tools about as often as a trained one.

Nothing is downloaded: a tokenizer of bytes, a thousand made documents, a local search.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from benchmarks.gpu_sizes import Sizes
from benchmarks.random_model import CORPUS
from rapo_jax.config import ModelSettings, RolloutSettings, Settings
from rapo_jax.environment import Environment
from rapo_jax.rollout.spans import Boundary
from rapo_jax.search.ngram import NgramEncoder
from rapo_jax.text.protocol import stops
from rapo_jax.text.tokens import Tokens, boundary_automaton, build_tokenizer, load_tokens
from rapo_jax.tools.observation import Observation
from rapo_jax.tools.search import local_search
from rapo_jax.train.sampler import Sampler

CALL_EVERY = 64
"""One in so many tokens of the rollout's vocabulary closes a call, a quarter of them an answer."""
SYSTEM = "Answer the question."


def plain_boundary(model: ModelSettings) -> Boundary:
    """A vocabulary of single bytes, no token of which ends a response."""
    ends = stops(())
    automaton = boundary_automaton([bytes([i % 256]) for i in range(model.vocab)], ends)
    return Boundary(
        jnp.asarray(automaton.next_state_AV),
        automaton.first_accept,
        ends.index("</answer>"),
        jnp.full(1, -1, jnp.int32),
    )


class Play(NamedTuple):
    sampler: Sampler
    environment: Environment


def make_play(model: ModelSettings, s: Settings, sizes: Sizes, mesh: Mesh, workdir: Path) -> Play:
    """A sampler whose random policy calls the local search: see `calling`."""
    z = sizes
    r: RolloutSettings = dataclasses.replace(
        s.rollout,
        prompt_tokens=max(z.prompt, 128),
        step_tokens=2 * z.ticks,
        observation_tokens=z.ticks,
        retrieved_tokens=z.ticks,
        max_tokens=max(z.prompt, 128) + (s.rollout.max_calls + 1) * 3 * z.ticks,
        chunks=1,
        driver="scan",
    )
    build_tokenizer(workdir / "tokenizer", CORPUS, vocab_size=1024)
    tokens = calling(load_tokens(workdir / "tokenizer", vocab_size=model.vocab))
    documents = [f"fact {n}: word number {n} is told here" for n in range(1000)]
    encode = NgramEncoder.fit(documents, width=256, orders=(1, 2))
    tools = {"search": local_search(documents, encode, passages=3), "python": no_python}
    environment = Environment(
        tokens,
        tools,
        observation_tokens=r.observation_tokens,
        retrieved_tokens=r.retrieved_tokens,
    )
    sampler = Sampler(
        model,
        r,
        tokens,
        environment,
        mesh,
        system=SYSTEM,
        embed=lambda key_BE: key_BE,
        query_E=jax.ShapeDtypeStruct((8,), np.float32),
    )
    return Play(sampler, environment)


def no_python(calls: list[str]) -> list[Observation]:
    """The random policy seldom closes this tag, and never writes a program."""
    return [Observation("", "empty") for _ in calls]


def calling(tokens: Tokens) -> Tokens:
    """Gives the ids that the tokenizer leaves free text: words, whole calls, whole answers.

    A policy with random weights draws every token about as often, so that its steps are about
    CALL_EVERY tokens long, end with a call as a trained one's do, and now and then with an answer.
    """
    texts = [b" word"] * (4 * CALL_EVERY)
    for at in range(0, len(texts), CALL_EVERY):
        texts[at] = b"<search>word number 7</search>"
    texts[0] = b"<answer>\\boxed{it}</answer>"
    free = [text or texts[i % len(texts)] for i, text in enumerate(tokens.bytes_V)]
    return dataclasses.replace(tokens, bytes_V=free)

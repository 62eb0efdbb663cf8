"""A policy that writes a script, each token followed by one other; and rollouts of the house."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

import jax
import numpy as np
import pytest

from rapo_jax.config import ModelSettings, RolloutSettings
from rapo_jax.model.decoding import sampling_copy
from rapo_jax.model.transformer import init_params
from rapo_jax.rollout.thinking import (
    Boundary,
)
from rapo_jax.text.boundary import boundary_automaton
from rapo_jax.text.protocol import STOPS
from rapo_jax.types import Params, Span
from tests.models import SMALL_MODEL

NAMES = (
    *("pad", "end", "</search>", "</python>", "</answer>"),
    *("<", "/", "p", "y", "t", "h", "o", "n", ">"),
    *"ABCDEFGHIJKLMNOPQRSTUV",
)
TOKENS, PROMPT = 18, 3


class Stage(NamedTuple):
    """A small model whose tokens are `NAMES`, and the settings of its rollouts."""

    model: ModelSettings
    boundary: Boundary
    settings: RolloutSettings

    def ids(self, text: str) -> list[int]:
        """Token ids of names separated by spaces."""
        return [NAMES.index(name) for name in text.split()]

    def names(self, ids: np.ndarray) -> str:
        return " ".join(NAMES[i] for i in ids)

    def span(self, *texts: str, width: int) -> Span:
        """One text a row, padded with rubbish."""
        token_BX = np.full((len(texts), width), NAMES.index("V"), np.int32)
        for row, text in enumerate(texts):
            ids = self.ids(text)
            token_BX[row, : len(ids)] = ids
        return Span(token_BX, np.array([len(text.split()) for text in texts], np.int32))

    def policy(self, *scripts: str) -> Params:
        """Parameters with which greedy decoding goes from each name to the next of its script."""
        params = jax.tree.map(
            lambda leaf: np.zeros(leaf.shape, np.float32),
            jax.eval_shape(lambda: init_params(self.model, jax.random.key(0))),
        )
        params["embed_VD"] = np.eye(len(NAMES), dtype=np.float32)
        params["norm"]["scale"] += 1
        for script in scripts:
            ids = self.ids(script)
            for before, after in zip(ids, ids[1:], strict=False):
                params["head_DV"][before, after] = 1
                assert (params["head_DV"][before] > 0).sum() == 1, f"{NAMES[before]} goes on twice"
        return sampling_copy(self.model, params)


@pytest.fixture(scope="session")
def stage() -> Stage:
    model = dataclasses.replace(
        SMALL_MODEL,
        vocab=len(NAMES),
        width=len(NAMES),
        ffn=4,
        heads=1,
        kv_heads=1,
        qkv_bias=False,
        tied=False,
        init_scale=0.1,
    )
    settings = RolloutSettings(
        questions=2,
        group_size=2,
        n_hybrid=2,
        max_calls=2,
        prompt_tokens=PROMPT,
        step_tokens=10,
        observation_tokens=4,
        retrieved_tokens=5,
        max_tokens=TOKENS,
        temperature=0.0,
        slots=0,
        absorb_chunk=5,
        driver="host",
    )
    automaton = boundary_automaton([name.encode() for name in NAMES])
    boundary = Boundary(
        jax.numpy.asarray(automaton.next_state_AV),
        automaton.first_accept,
        STOPS.index("</answer>"),
        jax.numpy.asarray([NAMES.index("end")]),
    )
    return Stage(model, boundary, settings)


@pytest.fixture(scope="session")
def tape_text(stage) -> Callable[..., list[str]]:
    """The valid tokens of each row by name, with a source's letter and step where they change."""

    def show(trajectory) -> list[str]:
        rows = []
        for b, length in enumerate(np.asarray(trajectory.length_B)):
            said, last = [], None
            for t in range(length):
                mark = f"[{'-PQTR'[trajectory.source_BT[b, t]]}{trajectory.step_BT[b, t]}]"
                said += [mark] * (mark != last) + [NAMES[trajectory.token_BT[b, t]]]
                last = mark
            rows.append(" ".join(said))
        return rows

    return show


@pytest.fixture(scope="session")
def jitted(make_sampler):
    return make_sampler(devices=1, driver="jit")


@pytest.fixture(scope="session")
def spread_tools(house):
    """Tools of the sampler on eight devices; a test may swap them."""
    return dict(house.tools)


@pytest.fixture(scope="session")
def spread(make_sampler, spread_tools):
    return make_sampler(devices=8, driver="jit", tools=spread_tools)


@pytest.fixture(scope="session")
def play(house):
    """Rolls a sampler out on the house's questions."""

    def rolled(playing, *, seed, questions=None, probability=0.5, hybrid=2, **inputs):
        return playing.sampler.sample(
            playing.params,
            jax.random.key(seed),
            questions or house.asked,
            group_size=4,
            n_hybrid=hybrid,
            temperature=1.0,
            probability=probability,
            **inputs,
        )

    return rolled


@pytest.fixture(scope="session")
def many(jitted, play):
    """Rollouts with several keys; half of each group is hybrid."""
    return [play(jitted, seed=seed) for seed in range(8)]

"""Condensing the documents of searches by the policy itself, for protocols that do (Search-o1)."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import jax
import numpy as np
from jax.sharding import Mesh

from rapo_jax.config import ModelSettings, Settings
from rapo_jax.environment import Environment
from rapo_jax.model.sharding import row_shards
from rapo_jax.rollout.slots import Draws
from rapo_jax.sampling.sampler import Condenser, Sampler
from rapo_jax.sampling.tapes import response_text
from rapo_jax.tasks.schema import Question
from rapo_jax.text.condensing import Condense, RowCall, condensing_prompt
from rapo_jax.text.protocol import parse_step
from rapo_jax.text.protocols import Protocol
from rapo_jax.text.tokens import Tokens
from rapo_jax.types import Params


def prompt_room(settings: Settings) -> int:
    """Tokens of a condensing prompt: what the output leaves of `rollout.max_tokens`."""
    return settings.rollout.max_tokens - settings.rollout.condense_tokens


def make_condenser(
    settings: Settings, model: ModelSettings, tokens: Tokens, mesh: Mesh
) -> Condenser:
    """Condenses in single turns of the same model, without tools.

    Each draws by its row and search, whatever is condensed with it (`RowCall`).

    Raises:
        ValueError: the prompt has no tokens left for documents.
    """
    r, room = settings.rollout, prompt_room(settings)
    plain = Protocol("condensing", stops=(), parse=parse_step, tags=tokens.protocol.tags)
    tokens = dataclasses.replace(tokens, protocol=plain)
    needed = len(tokens.prompt_ids("", condensing_prompt(tokens, "", "", "", room=room)[0]))
    if 2 * needed > room:
        raise ValueError(
            f"rollout.condense_tokens={r.condense_tokens}: leaves {room} of rollout.max_tokens="
            f"{r.max_tokens} for the prompt with a search's documents, whose fixed part needs "
            f"{needed}; at least as many must be free: change either"
        )
    rooms = {"observation_tokens": r.observation_tokens, "retrieved_tokens": r.retrieved_tokens}
    sampler = Sampler(
        model,
        dataclasses.replace(
            r, prompt_tokens=room, step_tokens=r.condense_tokens, max_calls=0, slots=0
        ),
        tokens,
        Environment(tokens, {}, **rooms),
        mesh,
        system="",
        embed=lambda query: query,
        query_shape=jax.ShapeDtypeStruct((1,), np.float32),
    )
    shards, most = row_shards(mesh), settings.evaluate.rows

    def condenser(params: Params, key: jax.Array, temperature: float) -> Condense:
        key = jax.random.fold_in(key, Draws.CONDENSING)

        def sample(prompts: list[tuple[RowCall, str]]) -> list[str]:
            wanted = 1 << (len(prompts) - 1).bit_length()  # few sizes: each compiles
            size = min(most, -(-wanted // shards) * shards)
            padded = [*prompts, *prompts[-1:] * (size - len(prompts))]
            tape = sampler.sample(
                params,
                key,
                [Question("condensing", text, (), "", "") for _, text in padded],
                temperature=temperature,
                row_numbers=[row * max(r.max_calls, 1) + call for (row, call), _ in padded],
            )
            return [response_text(tokens, tape, b) for b in range(len(prompts))]

        def condense(prompts: Mapping[RowCall, str]) -> list[str]:
            items = list(prompts.items())
            parts = (items[i : i + most] for i in range(0, len(items), most))
            return [text for part in parts for text in sample(part)]

        return condense

    return condenser


def report_condensing(counts: Mapping[str, float]) -> None:
    """Prints how many searches were condensed, and of how many the documents were cut."""
    if counts.get("condensed"):
        whole, cut = int(counts["condensed"]), int(counts.get("condensed/cut", 0))
        empty = int(counts.get("condensed/nothing", 0))
        print(
            f"[condensing] {whole} searches; documents cut: {cut}; no information: {empty}",
            flush=True,
        )

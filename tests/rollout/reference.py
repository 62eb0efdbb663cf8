"""Algorithm 1 for one row after another, in plain Python: no slots, no cache, no batch, no host.

It scores the whole row anew for every token. What it shares with the rollout is the policy, the
random draws and the texts of the tools and of the buffer.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np

from rapo_jax.model.sampling import sample
from rapo_jax.model.transformer import forward, unembed
from rapo_jax.text.observations import observation_ids, retrieved_ids
from rapo_jax.text.protocol import STOPS, parse_step, without_retrieved
from rapo_jax.types import Source, Status


class Row(NamedTuple):
    """A finished row; `logp` and `entropy` are 0 where the policy wrote nothing."""

    token: list[int]
    source: list[int]
    step: list[int]
    logp: list[float]
    entropy: list[float]
    status: Status


def reference_rows(house: Any, key: jax.Array, *, group_size: int, n_hybrid: int, **how: Any):
    """The rows of the house's questions; `how` as for `Sampler.sample`, all of it given."""
    row_of = reference_row(house, key, group_size=group_size, n_hybrid=n_hybrid, **how)
    return [row_of(number) for number in range(len(house.asked) * group_size)]


def reference_row(
    house: Any, key: jax.Array, *, group_size: int, n_hybrid: int, **how: Any
) -> Callable[..., Row]:
    """(number, prefix, calls) -> that row; `prefix` is a row of so many calls that it begins with,
    ended by an observation or a trace."""
    r, model, params = house.settings.rollout, house.model, jax.device_put(house.params)

    @jax.jit
    def next_token(token_T: jax.Array, length: jax.Array, key: jax.Array):
        hidden_D = forward(model, params, token_T[None])[0, length - 1]
        logits_1V = unembed(model, params, hidden_D[None])
        drawn = sample(logits_1V, key[None], temperature=how["temperature"])
        return jax.tree.map(lambda x: x[0], drawn)

    def row_of(number: int, prefix: Row | None = None, calls: int = 0) -> Row:
        question = house.asked[number // group_size]
        hybrid = number % group_size >= group_size - n_hybrid
        row = prefix or Row([], [], [], [], [], Status.RUNNING)
        step, history = 0, ""
        token_key = jax.random.fold_in(jax.random.fold_in(key, 0), number)

        def write(ids, source: Source, logp: float = 0.0, entropy: float = 0.0) -> None:
            for id in ids:
                token = (int(id), int(source), step, logp, entropy)
                for values, value in zip(row[:5], token, strict=True):
                    values.append(value)

        prompt = house.tokens.prompt_ids(house.system, question.question)
        if prefix is None:
            write(prompt, Source.PROMPT)
        else:
            step, history = row.step[-1] + 1, house.tokens.decode(row.token[len(prompt) :])
        while True:
            begin = len(row.token)
            while True:  # think
                T = np.zeros(r.max_tokens, np.int32)
                T[: len(row.token)] = row.token
                position = len(row.token)
                drawn = next_token(T, position, jax.random.fold_in(token_key, position))
                write([drawn.token_B], Source.POLICY, float(drawn.logp_B), float(drawn.entropy_B))
                text = house.tokens.decode(row.token[begin:])
                if text.endswith(STOPS) or row.token[-1] in house.tokens.eos_ids:
                    break
                if len(row.token) in (begin + r.step_tokens, r.max_tokens):
                    return row._replace(status=Status.OUT_OF_TOKENS)
            if not text.endswith(STOPS):
                return row._replace(status=Status.STOPPED)
            if text.endswith("</answer>"):
                return row._replace(status=Status.ANSWERED)
            if calls == r.max_calls:
                return row._replace(status=Status.OUT_OF_CALLS)
            calls += 1
            history += text
            call = parse_step(text)  # act
            (observation,) = house.tools[call.kind]([call.content])
            ids = observation_ids(house.tokens, observation.text, room=r.observation_tokens)
            if len(row.token) + len(ids) > r.max_tokens:
                return row._replace(status=Status.OUT_OF_TOKENS)
            write(ids, Source.TOOL)
            history += house.tokens.decode(ids)
            step += 1
            coin_key = jax.random.fold_in(
                jax.random.fold_in(jax.random.fold_in(key, 1), calls), number
            )
            coin, noisy, pick = map(float, jax.random.uniform(coin_key, (3,)))
            wants = hybrid and coin < how["probability"] and calls <= how["last_retrieval"]
            if wants and len(row.token) + 1 < r.max_tokens:  # retrieve
                keys = house.encode(
                    house.retriever.key_texts([question.question], [without_retrieved(history)])
                )
                pick_1 = np.array([pick if noisy < how["noise"] else -1.0])
                (hit,) = house.retriever.nearest(keys, pick_B=pick_1)
                ids = retrieved_ids(house.tokens, hit.value, room=r.retrieved_tokens)
                if len(row.token) + len(ids) < r.max_tokens:
                    write(ids, Source.RETRIEVED)
                    history += house.tokens.decode(ids)
                    step += 1
            if len(row.token) == r.max_tokens:
                return row._replace(status=Status.OUT_OF_TOKENS)

    return row_of

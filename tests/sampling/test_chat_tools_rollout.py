"""Rollouts in the tool calls of a chat template: a policy whose vocabulary holds whole calls."""

from __future__ import annotations

import dataclasses

import jax
import numpy as np
import pytest

from rapo_jax.environment import Environment
from rapo_jax.model.sharding import make_mesh
from rapo_jax.sampling.sampler import Sampler
from rapo_jax.sampling.tapes import segments
from rapo_jax.text.protocols import CHAT_TOOLS
from rapo_jax.text.tokens import load_tokens
from rapo_jax.types import Source, Status
from tests.conftest import talkative_params
from tests.environment.stand_ins import echo
from tests.text.test_chat import make
from tests.text.test_chat_tools import CALL, FORMS, LLAMA_CALL


@pytest.mark.parametrize("form", ["qwen", "llama"])
@pytest.mark.parametrize("driver", ["jit", "host"])
def test_turns_call_until_one_calls_nothing_and_ends_its_row(house, tmp_path, form, driver):
    call = LLAMA_CALL if form == "llama" else CALL
    control, ordinary, end, template = FORMS[form]
    tokens = load_tokens(
        make(tmp_path, control, (*ordinary, call), end, template), protocol=CHAT_TOOLS
    )
    model = dataclasses.replace(house.model, vocab=len(tokens.bytes_V))
    added = tokens.tokenizer.get_added_vocab()
    params = talkative_params(model, tokens, {added[call]: 6.0, added[end]: 6.0})
    rooms = {"observation_tokens": 90, "retrieved_tokens": 20, "max_calls": 4}
    environment = Environment(tokens, {"search": echo, "python": echo}, **rooms)
    asked = house.asked[:8]
    longest = max(len(tokens.prompt_ids("s", question.question)) for question in asked)
    r = dataclasses.replace(
        house.settings.rollout, driver=driver, prompt_tokens=longest, max_tokens=longest + 400,
        step_tokens=12, **rooms,
    )  # fmt: skip
    sampler = Sampler(
        model, r, tokens, environment, make_mesh(jax.devices()[:1]),
        system="s", embed=lambda query: query, query_shape=jax.ShapeDtypeStruct((2,), np.float32),
    )  # fmt: skip
    found = sampler.sample(
        sampler.load(params), jax.random.key(0), asked, group_size=2, n_hybrid=0, temperature=1.0
    )
    made = []
    for b, calls in enumerate(environment.calls):
        turns = [s.text for s in segments(tokens, found, b) if s.source == Source.POLICY]
        replies = [s.text for s in segments(tokens, found, b) if s.source == Source.TOOL]
        wanted = [tokens.protocol.parse(turn) for turn in turns]
        status, made_now = Status(int(found.status_B[b])), []
        for steps, reply in zip(wanted, replies, strict=False):
            made_now += steps
            assert steps and reply.startswith(tokens.protocol.before)
            assert reply.endswith(tokens.protocol.after)
        if status == Status.STOPPED:
            assert turns[-1].endswith(tokens.protocol.stops) and len(turns) == len(replies) + 1
            assert not wanted[-1] or len(replies) == r.max_calls
        assert len(calls) == len(made_now)
        made.append(len(calls))
    assert {Status.STOPPED} <= set(found.status_B.tolist())
    assert max(made) > 1 and 0 in made

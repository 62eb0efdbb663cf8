"""Rollouts whose tools and retrieval fail at a rate of 0.3: counted, and of no other effect."""

from __future__ import annotations

from collections import defaultdict
from functools import partial

import jax
import numpy as np
import pytest

from rapo_jax.sampling.tapes import segments
from rapo_jax.tools.observation import Observation
from rapo_jax.tools.user import UserTool
from rapo_jax.types import Source, Status
from tests.conftest import GROUP, HYBRID
from tests.environment.stand_ins import Immediate
from tests.faults.injected import Faults, faulty

CHARS, TIMEOUT_S = 40, 0.3
KINDS = ("error", "hang", "flood", "late")


@pytest.fixture(scope="module")
def roll(house, make_sampler):
    """A rollout of the house with these tools and queries: its tape, and the host's counts."""
    equipped = dict(house.tools)
    playing = make_sampler(devices=1, driver="host", tools=equipped)

    def sample(tools, query=house.encode):
        equipped.update(tools)
        playing.environment.use_buffer(
            house.retriever, query, exclude_same_question=False, without_retrieved_history=True
        )
        playing.environment.take_counts()
        tape = playing.sampler.sample(
            playing.params,
            jax.random.key(0),
            house.asked,
            group_size=GROUP,
            n_hybrid=HYBRID,
            temperature=1.0,
            probability=0.7,
        )
        return tape, playing.environment.take_counts()

    return sample


def honest(text):
    return f"{len(text)} letters"


def user_tool(name, function):
    return UserTool(name, function, timeout_s=TIMEOUT_S, output_chars=CHARS)


def test_calls_that_fail_are_counted_and_no_row_is_lost(roll):
    faults = Faults(*KINDS)
    function = faulty(honest, faults)
    tape, counts = roll({name: user_tool(name, function) for name in ("search", "python")})
    injected = faults.counts
    assert min(injected[kind] for kind in KINDS) > 0, injected
    assert counts["search"] + counts["python"] == injected.total()
    assert counts["outcome/error"] == injected["error"]
    assert counts["outcome/timeout"] == injected["hang"]
    assert counts["outcome/flooded"] == injected["flood"]
    assert counts["outcome/ok"] == injected["late"] + injected[""]
    assert Status.MALFORMED not in tape.status_B


def test_a_row_whose_tool_failed_is_the_row_whose_tool_said_the_same(roll):
    """All of it, so that rewards, advantages and gradients are the same too."""
    faults, said = Faults(*KINDS), defaultdict(list)

    def broken(name, calls):
        observations = [user_tool(name, faulty(honest, faults))([call])[0] for call in calls]
        said[name] += observations
        return observations

    def smooth(name, calls):
        return [Observation(said[name].pop(0).text, "ok") for _ in calls]

    def rolled(tool):  # immediate tools get their calls in the same order each time
        return roll({name: Immediate(partial(tool, name)) for name in ("search", "python")})

    tape, counts = rolled(broken)
    assert counts["outcome/error"] * counts["outcome/timeout"] * counts["outcome/flooded"] > 0
    again, counts = rolled(smooth)
    assert counts["outcome/ok"] == faults.counts.total()
    jax.tree.map(np.testing.assert_array_equal, tape, again)


def test_no_token_of_a_failed_call_is_one_of_the_policy(house, roll):
    def fails(text):
        raise OSError("the wire is cut")

    tape, counts = roll({name: user_tool(name, fails) for name in ("search", "python")})
    said = [
        (segment.source, segment.text)
        for b in range(len(tape.length_B))
        for segment in segments(house.tokens, tape, b)
        if "<result> error: " in segment.text
    ]
    assert {source for source, _ in said} == {Source.TOOL}
    assert len(said) == counts["outcome/error"] > 10


def test_states_without_a_finite_key_get_no_trace_and_are_counted(house, roll):
    faults = Faults("nan", "inf")

    def query(texts):
        key_BE = np.array(house.encode(texts))
        for b, text in enumerate(texts):
            if kind := faults.draw(text):
                key_BE[b] = float(kind)
        return key_BE

    tape, counts = roll(house.tools, query)
    bad = faults.counts["nan"] + faults.counts["inf"]
    assert counts["buffer/queries"] == faults.counts.total()
    assert 0 < counts["buffer/not_finite"] == bad
    assert counts["buffer/hits"] == faults.counts.total() - bad
    retrieved = sum(
        segment.source == Source.RETRIEVED
        for b in range(len(tape.length_B))
        for segment in segments(house.tokens, tape, b)
    )
    assert 0 < retrieved <= counts["buffer/hits"]
    assert Status.MALFORMED not in tape.status_B

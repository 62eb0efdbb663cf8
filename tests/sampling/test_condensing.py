"""Search-o1 end to end: a policy that searches, and condenses its own hits, in one rollout."""

from __future__ import annotations

import dataclasses

import jax
import numpy as np
import pytest

from rapo_jax.environment import Environment
from rapo_jax.model.sharding import make_mesh
from rapo_jax.rollout.slots import Draws
from rapo_jax.run.checks import check_condensing
from rapo_jax.sampling.condensing import make_condenser, prompt_room
from rapo_jax.sampling.sampler import Sampler
from rapo_jax.sampling.tapes import segments
from rapo_jax.text.protocols import SEARCH_O1
from rapo_jax.text.tokens import load_tokens
from rapo_jax.types import Source, Status
from tests.conftest import talkative_params
from tests.environment.stand_ins import Immediate, echo
from tests.text.test_chat import PUBLISHED, make

SEARCHES = [f"<|begin_search_query|>{n}<|end_search_query|>" for n in "abcdefgh"]
MARKER = "**Final Information** Dorim"


@pytest.fixture
def open_sampler(house, tmp_path, small_settings):
    """A sampler whose vocabulary holds whole searches and the marker, and what it was made of."""

    def open_sampler(devices, **rooms):
        control, ordinary, end, template = PUBLISHED["qwen2.5"]
        folder = make(tmp_path, control, (*ordinary, *SEARCHES, MARKER), end, template)
        tokens = load_tokens(folder, protocol=SEARCH_O1)
        model = dataclasses.replace(house.model, vocab=len(tokens.bytes_V))
        changes = {
            "max_tokens": 3000, "prompt_tokens": 900, "observation_tokens": 90, "step_tokens": 12,
            "condense_tokens": 12, "max_calls": 2, "driver": "host",
        } | rooms  # fmt: skip
        settings = small_settings(
            {"protocol": "search_o1", "stages": ("evaluate",), "rl.buckets": (3000,)}
            | {f"rollout.{key}": value for key, value in changes.items()}
        )
        r, mesh = settings.rollout, make_mesh(jax.devices()[:devices])
        environment = Environment(
            tokens, {"search": Immediate(echo)}, observation_tokens=r.observation_tokens,
            retrieved_tokens=r.retrieved_tokens, max_calls=r.max_calls,
            condense_room=prompt_room(settings),
        )  # fmt: skip
        sampler = Sampler(
            model, dataclasses.replace(r, max_calls=r.max_calls + 5), tokens, environment, mesh,
            system="", embed=lambda query: query,
            query_shape=jax.ShapeDtypeStruct((2,), np.float32),
            condenser=make_condenser(settings, model, tokens, mesh),
        )  # fmt: skip
        added = tokens.tokenizer.get_added_vocab()
        liked = dict.fromkeys((*SEARCHES, end), 6.0) | {MARKER: 7.0}
        params = talkative_params(model, tokens, {added[text]: x for text, x in liked.items()})
        return tokens, environment, sampler, sampler.load(params)

    return open_sampler


@pytest.mark.parametrize("devices", [1, 2])
def test_the_policy_reads_its_hits_and_the_information_enters_the_context(
    house, open_sampler, devices
):
    tokens, environment, sampler, params = open_sampler(devices)
    how = {"group_size": 1, "n_hybrid": 0, "temperature": 1.0}
    found = sampler.sample(params, jax.random.key(0), house.asked[:8], **how)
    replies, statuses = [], []
    for b, calls in enumerate(environment.calls):
        written = [s for s in segments(tokens, found, b) if s.source != Source.PROMPT]
        read = [s.text for s in written if s.source == Source.TOOL]
        status = Status(int(found.status_B[b]))
        assert len(read) == len(calls)
        assert sum(outcome == "ok" for _, outcome in calls) <= 2
        made = [s.text for s in written if s.source == Source.POLICY]
        assert all(SEARCH_O1.parse(text) for text in made[: len(read)])
        if status == Status.STOPPED:
            assert len(made) == len(read) + 1 and SEARCH_O1.parse(made[-1]) == []
        replies += read
        statuses.append(status)
    assert Status.STOPPED in statuses
    assert not any("heard" in text for text in replies)  # the documents themselves never enter
    assert any("Dorim" in text for text in replies)
    assert any(SEARCH_O1.no_calls_left in text for text in replies)
    counts = environment.take_counts()
    assert counts["condensed"] > counts["condensed/nothing"]
    again = sampler.sample(params, jax.random.key(0), house.asked[:8], **how)
    np.testing.assert_array_equal(found.token_BT, again.token_BT)


def test_tapes_depend_neither_on_the_batch_nor_on_the_slots(house, open_sampler):
    def tapes(sampler, params, *, at_a_time):
        rows = []
        for first in range(0, 8, at_a_time):
            asked = house.asked[first : first + at_a_time]
            how = {"temperature": 1.0, "first_row": first}
            found = sampler.sample(params, jax.random.key(0), asked, **how)
            rows += [found.token_BT[b, :length].tolist() for b, length in enumerate(found.length_B)]
        return rows

    whole = tapes(*open_sampler(1)[2:], at_a_time=8)
    assert tapes(*open_sampler(1, slots=3)[2:], at_a_time=4) == whole


def test_condensing_draws_from_a_key_of_its_own_with_other_numbers_for_each_search(
    open_sampler, monkeypatch
):
    keys, numbers, key = [], [], jax.random.key(0)
    _, _, sampler, params = open_sampler(1)

    def sample(self, params, key, questions, *, row_numbers, **how):
        keys.append(tuple(jax.random.key_data(key).tolist()))
        numbers.extend(row_numbers)
        raise LookupError

    condense = sampler._condenser(params, key, 1.0)
    monkeypatch.setattr(Sampler, "sample", sample)
    for row in range(2):
        with pytest.raises(LookupError):
            condense({(row, 0): "a prompt", (row, 1): "another"})
    others = [jax.random.fold_in(key, n) for n in Draws if n != Draws.CONDENSING]
    drawn = {tuple(jax.random.key_data(each).tolist()) for each in (key, *others)}
    assert len(set(keys)) == 1 and not drawn & set(keys)
    assert len(set(numbers)) == 4


def test_a_prompt_without_room_for_documents_is_refused_before_any_compile(open_sampler):
    with pytest.raises(ValueError, match="rollout.condense_tokens=2500: leaves 500 of"):
        open_sampler(1, condense_tokens=2500)


def test_training_and_the_jitted_driver_are_refused(small_settings):
    whole = {"protocol": "search_o1", "method": "grpo"}
    settings = small_settings(whole | {"stages": ("rl", "evaluate")})
    with pytest.raises(ValueError, match=r"stages=.*is evaluated, not trained.*leave rl out"):
        check_condensing(settings, SEARCH_O1)
    settings = small_settings(whole | {"stages": ("evaluate",)})
    with pytest.raises(ValueError, match="rollout.driver='jit'.* use 'host'"):
        check_condensing(settings, SEARCH_O1)

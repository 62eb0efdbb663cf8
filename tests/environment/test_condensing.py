"""Searches whose documents a model condenses before the row reads them (Search-o1)."""

from __future__ import annotations

import dataclasses

from rapo_jax.text.condensing import NOTHING_HELPFUL
from rapo_jax.text.protocols import SEARCH_O1
from tests.environment.stand_ins import Immediate, echo


def search_o1(*queries):
    return [f"<|begin_search_query|>{query}<|end_search_query|>" for query in queries]


def test_searches_are_condensed_together_once_no_row_thinks(house, make, act_once):
    asked = []

    def condense(prompts):
        asked.append(prompts)  # by row and search
        return [f"so **Final Information** text {n}" for n in range(len(prompts) - 1)] + ["nothing"]

    tokens = dataclasses.replace(house.tokens, protocol=SEARCH_O1)
    environment = make({"search": Immediate(echo)}, tokens=tokens, room=200, condense_room=3000)
    environment.begin(house.asked, condense=condense)
    early = act_once(environment, search_o1("a", "b", "c"), idle=False)
    assert early.ready == [False] * 3 and not asked
    waits = {"calls": [False] * 3, "waits": [True] * 3}
    found = act_once(environment, [""] * 3, **waits)
    result = "\n\n<|begin_search_result|>{}<|end_search_result|>\n\n"
    texts = ("text 0", "text 1", NOTHING_HELPFUL)
    assert found.ready == [True] * 3 and found.texts == [result.format(text) for text in texts]
    first = asked[0][0, 0]
    assert "Search query:\na\n" in first and "Documents:\nheard a\n" in first
    again = act_once(environment, search_o1("a", "d", "e"))  # no prompt for the repeated search
    assert [list(prompts) for prompts in asked] == [[(0, 0), (1, 0), (2, 0)], [(1, 1), (2, 1)]]
    assert again.texts[0] == result.format(SEARCH_O1.repeated)
    counts = environment.take_counts()
    assert (counts["condensed"], counts["condensed/nothing"], counts["condensed/cut"]) == (5, 2, 0)


def test_a_condensation_that_fails_leaves_its_rows_unhealthy(house, make, act):
    def condense(prompts):
        raise MemoryError

    tokens = dataclasses.replace(house.tokens, protocol=SEARCH_O1)
    environment = make({"search": echo}, tokens=tokens, room=90, condense_room=3000)
    environment.begin(house.asked, condense=condense)
    texts, healthy = act(environment, search_o1("a"))
    assert (texts, healthy) == ([""], [False]) and isinstance(environment.failure, MemoryError)


def test_what_condenses_is_given_with_each_rollout_and_does_not_stay_for_the_next(house, make, act):
    tokens = dataclasses.replace(house.tokens, protocol=SEARCH_O1)
    environment = make({"search": echo}, tokens=tokens, room=90, condense_room=3000)
    environment.begin(house.asked, condense=lambda prompts: ["**Final Information** so"])
    assert "_result|>so<" in act(environment, search_o1("a"))[0][0]
    environment.begin(house.asked)
    assert "heard a" in act(environment, search_o1("a"))[0][0]

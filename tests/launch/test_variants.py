"""launch/variants.py: combinations of settings, and the names of their runs."""

from __future__ import annotations

import pytest

from tests.launch.sweeps import load

variants = load("variants")


def names(sweeps, runs=()):
    return list(variants.plan(sweeps, runs))


def test_sweeps_are_combined():
    assert names(["method=grpo,rapo", "seed=0,1"]) == [
        "grpo_seed=0", "grpo_seed=1", "rapo_seed=0", "rapo_seed=1",
    ]  # fmt: skip


def test_each_variant_is_combined_with_all_sweeps():
    runs = ["method=grpo", "method=rapo, rl.m=0, rl.a=0"]
    assert names(["seed=0,1"], runs) == [
        "grpo_seed=0", "grpo_seed=1", "rapo_rl.m=0_rl.a=0_seed=0", "rapo_rl.m=0_rl.a=0_seed=1",
    ]  # fmt: skip


def test_commas_inside_brackets_and_quotes_do_not_separate():
    assert variants.split("a=(1, 2),b='x,y',c=[3,(4,5)]") == ["a=(1, 2)", "b='x,y'", "c=[3,(4,5)]"]


def test_a_key_that_one_run_is_given_twice_is_refused():
    with pytest.raises(ValueError, match="method is given twice in one --run"):
        variants.plan([], ["method=grpo,method=rapo"])


def test_an_apostrophe_within_a_word_is_no_quote():
    assert variants.split("a=Don't guess,b=1") == ["a=Don't guess", "b=1"]
    assert variants.split("a='it''s, so',b=1") == ["a='it''s, so'", "b=1"]


@pytest.mark.parametrize("text", ["a=(1,b=1", "a=1),b=1", "a='x,b=1", "a=[(1],b=(2"])
def test_a_quote_or_bracket_that_stays_open_is_refused(text):
    with pytest.raises(ValueError, match="opened or closed alone"):
        variants.split(text)


def test_a_long_value_gives_a_name_that_a_file_system_takes():
    long = [variants.name_of({"x": "ä" * 400 + end, "seed": "0"}) for end in "ab"]
    assert all(len(f"{name}.log".encode()) <= 255 for name in long) and long[0] != long[1]


def test_a_name_is_safe_as_a_folder():
    assert variants.name_of({"x": "../a b;c", "seed": "0"}) == "x=..-a-b-c_seed=0"


@pytest.mark.parametrize(
    ("sweeps", "runs", "message"),
    [
        (["seed"], [], "not KEY=VALUE"),
        (["seed=0", "seed=1"], [], "seed is given twice"),
        (["seed=0"], ["seed=1"], "seed is given twice"),
        (["seed=0,0"], [], "two runs would be called"),
    ],
)
def test_a_contradictory_plan_is_refused(sweeps, runs, message):
    with pytest.raises(ValueError, match=message):
        variants.plan(sweeps, runs)

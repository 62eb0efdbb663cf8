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

"""A suite's numbers, and the table with the paper's."""

from __future__ import annotations

import numpy as np
import pytest

from rapo_jax.scoring.intervals import wilson
from rapo_jax.suites.paper import AVERAGED, backbone
from rapo_jax.suites.scores import FAILURES, RIGHT
from rapo_jax.suites.summary import headline, summarise
from rapo_jax.suites.table import table

INFO = {"suite": "made", "weights": "checkpoint of step 3", "scoring": "strict", "temperature": 0}
SHAPES = {
    "Qwen2.5-7B-Instruct": (3584, 28, 18944),
    "Llama3-8B-Instruct": (4096, 32, 14336),
    "Qwen2.5-3B-Instruct": (2048, 36, 11008),
}


def rows(scores, *, metric="math", groups=("made",), samples=1):
    return [
        {
            "id": f"q{n // samples}",
            "sample": n % samples,
            "group": groups[n // samples % len(groups)],
            "metric": metric,
            "score": score,
            "scores": {"exact": score, metric: score, "judge": None if n else 1.0},
            "kind": RIGHT if score == 1 else "wrong" if score == 0 else "partly right",
            "calls": {"search": 2, "python": 1} if n else {},
            "failed_calls": {"search": 1} if n else {},
            "tokens": 10 * n,
        }
        for n, score in enumerate(scores)
    ]


def summary(scores, *, samples=1, base="", metric="math", method="rapo", **how):
    found = summarise(rows(scores, metric=metric, samples=samples, **how), samples=samples)
    return {**INFO, "metric": metric, "backbone": base, "method": method, **found}


def test_maths_of_single_answers_has_wilsons_interval():
    found = summary([1.0] * 8 + [0.0] * 2)
    assert found["score"] == found["pass@1"] == pytest.approx(0.8)
    assert found["interval"] == found["pass@1_interval"] == wilson(8, 10)
    assert found["kinds"] == {RIGHT: 8, **dict.fromkeys(FAILURES, 0), "wrong": 2}


def test_token_f1_has_a_bootstrap_interval_and_its_pass_at_1_wilsons():
    scores = [1.0, 0.5, 0.0, 0.25] * 10
    found = summary(scores, metric="f1")
    low, high = found["interval"]
    assert found["score"] == pytest.approx(np.mean(scores))
    assert low < found["score"] < high
    assert (found["pass@1"], found["pass@1_interval"]) == (0.25, wilson(10, 40))
    assert summary([0.5], metric="f1")["interval"] is None


def test_calls_and_tokens_are_means_of_a_sample_and_failed_verdicts_are_left_out():
    found = summary([1.0, 0.0, 0.0])
    assert found["calls"] == pytest.approx(2.0)  # 0, 3, 3
    assert found["calls_by_tool"] == pytest.approx({"python": 2 / 3, "search": 4 / 3})
    assert (found["failed_calls"], found["tokens"]) == (pytest.approx(2 / 3), 10)
    assert (found["scores"]["judge"], found["unjudged"]) == (1.0, 2)


def test_several_samples_give_avg_and_pass_at_k_over_questions():
    found = summary([1.0, 0.0, 0.0, 0.0, 1.0, 1.0], samples=2)
    assert (found["questions"], found["samples"]) == (3, 2)
    assert found["pass@1"] == found["avg@2"] == pytest.approx(0.5)
    assert found["pass@2"] == pytest.approx(2 / 3)
    low, high = found["interval"]
    assert 0 <= low < 0.5 < high <= 1  # over questions, whose samples hang together
    with pytest.raises(ValueError, match="no whole number of questions"):
        summary([1.0, 0.0, 0.0], samples=2)


def test_the_levels_of_a_suite_are_separate_groups():
    found = summary([1.0, 0.0, 1.0, 1.0], groups=("gaia/1", "gaia/2"))
    assert found["groups"] == {
        "gaia/1": {"questions": 2, "score": 1.0}, "gaia/2": {"questions": 2, "score": 0.5}
    }  # fmt: skip
    sampled_twice = summary([1.0, 0.0, 1.0, 1.0], groups=("gaia/1", "gaia/2"), samples=2)
    assert sampled_twice["groups"] == {
        "gaia/1": {"questions": 1, "score": 0.5}, "gaia/2": {"questions": 1, "score": 1.0}
    }  # fmt: skip
    assert summary([1.0])["groups"] == {}
    assert "| gaia | gaia/2 | 2 | 50.0 | – | – |" in table({"gaia": found})
    known = found | {"backbone": "Qwen2.5-7B-Instruct"}
    assert "| gaia | gaia/2 | 2 | 50.0 | 19.6 | 18.9 AEPO |" in table({"gaia": known})


def test_the_table_has_the_papers_score_of_the_method_and_its_best_other_one():
    found = {name: summary([1.0, 0.0], base="Qwen2.5-7B-Instruct") for name in AVERAGED}
    lines = table(found).splitlines()
    (gsm,) = [line for line in lines if line.startswith("| gsm8k | 2 | math | 50.0 [9.5, 90.5]")]
    assert gsm.endswith("| 1.5 | 5 | 92.7 | 92.8 GRPO |")
    (mean,) = [line for line in lines if line.startswith("| average of the 10")]
    assert "| 50.0 |" in mean and mean.endswith("| 51.3 | 49.6 AEPO |")
    head = next(line for line in lines if line.startswith("| suite | questions"))
    assert len({line.count("|") for line in (head, gsm, mean)}) == 1
    assert not any("average" in x for x in table({"gsm8k": found["gsm8k"]}).splitlines()[5:])


def test_the_table_names_of_how_many_samples_the_judges_score_is():
    one = summary([1.0, 0.0, 0.0])
    assert "| 100.0 (1 of 3) |" in table({"made": one})
    scores = {name: x for name, x in one["scores"].items() if name != "judge"}
    none = one | {"scores": scores, "unjudged": 3}
    assert "| – (0 of 3) |" in table({"made": none})
    without = one | {"scores": scores, "unjudged": 0}
    assert "judge" not in next(x for x in table({"a": without}).splitlines() if "| exact" in x)


def test_the_table_names_weights_scoring_and_every_kind_of_failure():
    found = table({"made": summary([1.0, 0.5, 0.0], metric="f1")})
    assert "Weights: checkpoint of step 3" in found and "Scoring: strict: as the outcome" in found
    assert "| suite | right | partly right | wrong | tool errors |" in found
    assert "| made | 1 | 1 | 1 | 0 |" in found
    several = table({"made": summary([1.0, 0.0], samples=2), "one": summary([1.0])})
    assert "| 50.0, 100.0 (k=2) |" in several and "avg@k, pass@k" in several


def test_a_headline_holds_score_interval_and_failures():
    line = headline("made", summary([1.0] * 8 + [0.0] * 2))
    assert line.startswith("made: math 80.0 [49.0, 94.3], 10 questions, ")
    assert line.endswith("right 8, wrong 2")


@pytest.mark.parametrize("name", SHAPES)
def test_the_papers_backbones_are_known_by_their_shape(name):
    width, layers, ffn = SHAPES[name]
    assert backbone(width=width, layers=layers, ffn=ffn) == name
    assert backbone(width=width, layers=layers + 1, ffn=ffn) == ""


def test_the_table_names_each_rule_of_scoring_where_there_are_several():
    strict = summary([1.0])
    assert "| scoring |" not in table({"math": strict})
    text = table({"math": strict, "gsm8k": strict | {"scoring": "official"}})
    assert "| metric | scoring | score |" in text
    assert "| math | strict |" in text and "| math | official |" in text

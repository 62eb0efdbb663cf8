"""The paper's tables: complete, consistent with their own averages, read by backbone and method."""

from __future__ import annotations

import pytest

from rapo_jax.config.methods import METHODS as TRAINED
from rapo_jax.suites.catalogue import SUITES
from rapo_jax.suites.paper import AVERAGE, AVERAGED, METHODS, paper_scores, reported
from rapo_jax.text.protocols import PROTOCOLS

QWEN7, QWEN3, LLAMA = "Qwen2.5-7B-Instruct", "Qwen2.5-3B-Instruct", "Llama3-8B-Instruct"


@pytest.mark.parametrize(("backbone", "rows"), [(QWEN7, 14), (QWEN3, 8), (LLAMA, 8)])
def test_every_average_of_table_1_is_the_mean_of_its_ten_columns(backbone, rows):
    scores = paper_scores()[backbone]
    assert len(scores[AVERAGE]) == rows
    for method, average in scores[AVERAGE].items():
        mean = sum(scores[suite][method] for suite in AVERAGED) / len(AVERAGED)
        assert mean == pytest.approx(average, abs=0.0501), method


@pytest.mark.parametrize(
    ("suite", "column", "levels"),
    [("gaia", "gaia-level{}", {"1": 39, "2": 52, "3": 12}),
     ("webwalkerqa_web", "webwalkerqa-{}", {"easy": 160, "medium": 280, "hard": 240})],
)  # fmt: skip
def test_of_table_2_only_two_methods_agree_with_the_mean_of_their_levels(suite, column, levels):
    """`levels`: how many questions there are of each; the other four are off by up to 2.8."""
    scores = paper_scores()[QWEN7]
    agree = set()
    for method, score in scores[suite].items():
        total = sum(scores[column.format(level)][method] * n for level, n in levels.items())
        if total / sum(levels.values()) == pytest.approx(score, abs=0.1501):
            agree.add(method)
    assert agree == {"GRPO", "Tree-GRPO"}


def test_suites_and_methods_of_the_paper_are_ours():
    levels = {f"gaia-level{n}" for n in (1, 2, 3)}
    levels |= {f"webwalkerqa-{level}" for level in ("easy", "medium", "hard")}
    assert set(paper_scores()[QWEN7]) == {*SUITES, AVERAGE, *levels}
    assert set(paper_scores()[QWEN3]) == set(paper_scores()[LLAMA]) == {*AVERAGED, AVERAGE}
    named = {m for backbone in paper_scores().values() for x in backbone.values() for m in x}
    assert named == set(METHODS.values())
    assert set(METHODS) <= {*TRAINED, *PROTOCOLS}


def test_the_best_other_method_is_never_the_same_one():
    assert reported(QWEN7, AVERAGE, method="rapo") == (51.3, 49.6, "AEPO")
    assert reported(QWEN7, AVERAGE, method="search_r1") == (37.2, 51.3, "RAPO")
    assert reported(QWEN7, "webwalkerqa_web", method="grpo", group="webwalkerqa/hard") == (
        11.6, 12.9, "RAPO"
    )  # fmt: skip


def test_what_the_paper_does_not_report_is_none():
    assert reported(QWEN3, "hotpotqa", method="search_r1") == (None, 45.8, "RAPO")
    assert reported(QWEN3, "hotpotqa", method="sft_grpo") == (None, 45.8, "RAPO")
    assert reported(QWEN3, "gaia", method="rapo") is None
    assert reported("", "hotpotqa", method="rapo") is None
    assert reported(QWEN7, "hotpotqa-first20", method="rapo") is None
    assert reported(QWEN7, "math", method="rapo", group="math/5") is None

"""Condenses search results: the model's summary of the documents replaces the observation."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence

from rapo_jax.text.condensing import NOTHING_HELPFUL, Condense, RowCall, final_information
from rapo_jax.text.protocol import Step
from rapo_jax.tools.calls import Called
from rapo_jax.tools.observation import Observation

MakePrompt = Callable[[str, str, str], tuple[str, bool]]
"""(history, query, documents) -> prompt, and whether the documents were cut."""


def condense_searches(
    condense: Condense,
    make_prompt: MakePrompt,
    called: Sequence[Sequence[Called]],
    histories: Sequence[str],
    row_calls: Sequence[RowCall],
) -> tuple[list[list[Called]], Counter[str]]:
    """The calls of several rows, those of searches with condensed observations; and counts.

    `row_calls` is that of each row's next search.
    """
    prompts: dict[RowCall, str] = {}
    cuts = []
    for results, history, (row, first) in zip(called, histories, row_calls, strict=True):
        asked = [(step, each) for step, each in results if _has_documents(step, each)]
        for call, (step, observation) in enumerate(asked, first):
            prompts[row, call], cut = make_prompt(history, step.content, observation.text)
            cuts.append(cut)
    texts = condense(prompts) if prompts else []
    information = [final_information(text) for text in texts]
    condensed = iter(information)
    replaced = [
        [
            (step, each._replace(text=next(condensed)) if _has_documents(step, each) else each)
            for step, each in results
        ]
        for results in called
    ]
    counts = {
        "condensed": len(prompts),
        "condensed/cut": sum(cuts),
        "condensed/nothing": information.count(NOTHING_HELPFUL),
    }
    return replaced, Counter(counts)


def _has_documents(step: Step, observation: Observation) -> bool:
    return step.kind == "search" and observation.outcome == "ok"

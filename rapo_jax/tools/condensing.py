"""Condenses search results: the model's summary of the documents replaces the observation."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence

from rapo_jax.text.condensing import NOTHING_HELPFUL, Condense, final_information
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
) -> tuple[list[list[Called]], Counter[str]]:
    """The calls of several rows, those of searches with condensed observations; and counts."""
    prompts = [
        make_prompt(history, step.content, observation.text)
        for history, results in zip(histories, called, strict=True)
        for step, observation in results
        if _has_documents(step, observation)
    ]
    texts = condense([prompt for prompt, _ in prompts]) if prompts else []
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
        "condensed/cut": sum(cut for _, cut in prompts),
        "condensed/nothing": information.count(NOTHING_HELPFUL),
    }
    return replaced, Counter(counts)


def _has_documents(step: Step, observation: Observation) -> bool:
    return step.kind == "search" and observation.outcome == "ok"

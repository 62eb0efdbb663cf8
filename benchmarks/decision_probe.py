"""Measures what a policy of the tiny task has learned: the probability of each right decision.

    python benchmarks/decision_probe.py RUN... [--words]

RUN is a finished run's workdir, or a cold start folder beside at least one workdir. Prints for each
RUN and context the mean probability by place in the trajectory. Histories are an expert's without
errors, on held-out questions with hidden words; nothing is sampled. Context `plain` has no trace
(what the policy knows), `earlier` has a right one before every second other step (whether context
disturbs it), `here` has a right one just before the decision (whether it copies).
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from rapo_jax.buffer.agents import run_agents
from rapo_jax.config import Settings
from rapo_jax.config.read import read_settings
from rapo_jax.config.sources import resolve
from rapo_jax.model.scoring import score
from rapo_jax.run.policy import load_policy
from rapo_jax.run.run import Run, open_run
from rapo_jax.tasks.chains import (
    ATTRIBUTE,
    DONE,
    HIDDEN_KINDS,
    OPERATIONS,
    apply_operation,
)
from rapo_jax.tasks.chains_agents import expert, step_text
from rapo_jax.tasks.stream import load_questions
from rapo_jax.tasks.synthetic import pick
from rapo_jax.text.protocol import Segment, render_retrieved
from rapo_jax.train.sft import examples_of
from rapo_jax.types import Params, Source


class Row(NamedTuple):
    """An expert's trajectory, and the right decision of each step."""

    question: str
    segments: list[Segment]
    right: list[str]


CONTEXTS: dict[str, Callable[[int], list[set[int]]]] = {
    "plain": lambda last: [set()],
    "earlier": lambda last: [set(range(1, last, 2)), set(range(2, last, 2))],
    "here": lambda last: [set(range(1, last))],
}
"""Name -> (number of places -> the sets of places that have a trace in front)."""
Decisions = dict[str, dict[str, list[float]]]
"""word -> place ('1', '2', ..., 'done') -> probabilities."""


def settings_of(workdirs: Sequence[Path]) -> Settings:
    """Settings of the first folder with a config.json; keys that are not in it have the default."""
    for folder in workdirs:
        if (folder / "config.json").is_file():
            return read_settings(resolve(None, workdir=folder).config)
    raise SystemExit("no config.json in any of these folders; name a run's workdir")


def expert_rows(run: Run) -> list[Row]:
    """An expert's trajectory for every held-out question with a hidden word."""
    questions = [q for q in load_questions(run.questions["eval"]) if q.kind in HIDDEN_KINDS]
    groups = run_agents(
        expert(run.world, error=0.0),
        questions,
        run.tools,
        max_calls=run.settings.rollout.max_calls,
        samples=1,
        rng_seed=0,
    )
    return [
        Row(q.question, list(group[0]), [*run.world.chains[q.question.split()[3]], DONE])
        for q, group in zip(questions, groups, strict=True)
    ]


def trace(run: Run, decision: str, rng: np.random.Generator) -> str:
    """An expert's step with this decision, for another entity or number."""
    world = run.world
    start = pick(rng, world.starts["expert"])
    if decision == DONE:
        return step_text(DONE, start)
    if decision in OPERATIONS:
        age = world.ages[start]
        return f"{step_text(decision, str(age))}<result> {apply_operation(decision, age)}</result>"
    fact = world.ages[start] if decision == ATTRIBUTE else world.facts[start, decision]
    return f"{step_text(decision, start)}<result> {start} {decision} {fact}</result>"


def with_traces(run: Run, row: Row, places: set[int]) -> tuple[str, list[Segment]]:
    """A row with a right trace in front of its steps at `places`."""
    rng = np.random.default_rng(0)
    segments, place = [], 0
    for segment in row.segments:
        if segment.source == Source.POLICY:
            if place in places:
                text = render_retrieved(trace(run, row.right[place], rng))
                segments.append(Segment(Source.RETRIEVED, segment.step, text))
            place += 1
        segments.append(segment)
    return row.question, segments


def probe(run: Run, scorer, params: Params, rows: Sequence[Row], context: str) -> Decisions:
    """Probabilities of the right decisions; those just after a trace only in context `here`."""
    decisions: Decisions = defaultdict(lambda: defaultdict(list))
    opening = run.tokens.encode_protocol("<think>")[0]
    last = max(len(row.right) for row in rows)
    for places in CONTEXTS[context](last):
        examples = examples_of(run, [with_traces(run, row, places) for row in rows])
        if len(examples.length_B) < len(rows):
            raise SystemExit("rollout.max_tokens: some rows with traces do not fit; raise it")
        logp_BT = np.asarray(scorer(params, examples.token_BT)[0])
        for b, row in enumerate(rows):
            decided = (examples.token_BT[b, :-1] == opening) & (
                examples.source_BT[b, 1:] == Source.POLICY
            )
            for place, t in enumerate(np.flatnonzero(decided) + 1):
                if (place in places) == (context == "here"):
                    name = "done" if row.right[place] == DONE else str(place + 1)
                    decisions[row.question.split()[3]][name].append(float(np.exp(logp_BT[b, t])))
    return decisions


def line(words: Sequence[dict[str, list[float]]]) -> str:
    """Means by place over some words."""
    places = sorted({place for each in words for place in each})
    means = {p: np.mean([x for each in words for x in each.get(p, [])]) for p in places}
    return "  ".join(f"{place} {mean:.2f}" for place, mean in means.items())


def main(arguments: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("runs", nargs="+", type=Path)
    parser.add_argument("--words", action="store_true", help="a line for each word, too")
    flags = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as scratch:
        run = open_run(settings_of(flags.runs), Path(scratch))
        scorer = jax.jit(lambda params, token_BT: score(run.model, params, token_BT))
        rows = expert_rows(run)
        for folder in flags.runs:
            params = load_policy(run, folder)
            for context in CONTEXTS:
                decisions = probe(run, scorer, params, rows, context)
                print(f"{folder}  {context:<8}{line(list(decisions.values()))}", flush=True)
                for word in decisions if flags.words and context == "plain" else ():
                    chain = " ".join(run.world.chains[word])
                    print(f"    {word:<8}{chain:<32}{line([decisions[word]])}")
        run.close()


if __name__ == "__main__":
    main(sys.argv[1:])

"""Which keys find the right step trace: n-grams, MiniLM or hidden states of the policy.

    python benchmarks/retrieval_keys.py WORKDIR [--policy FOLDER] [--minilm FOLDER]

WORKDIR is a run of a synthetic task with its cold start and buffer (or their folders in its
config). States are those of an expert without errors on training questions, of which the buffer
holds none, before each of its steps but the first. Prints for each kind of question, place of the
step and kind of key the share of states whose nearest step trace takes the expert's decision
(place 0: of all together):

    n-grams          of question and history, as a run searches them with retrieval.encoder='ngram'
    without a mask   the same with names and numbers
    hidden state     of the cold start after the last token of the state; and with the mean over the
                     buffer subtracted
    MiniLM           with --minilm: of question and history, as a run searches them with
                     retrieval.encoder='minilm'; and with names and numbers

--policy takes the hidden states of the present states from other weights than those of the buffer,
as a run would whose policy has moved on since its buffer was embedded.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
import tempfile
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from rapo_jax.buffer.agents import run_agents
from rapo_jax.buffer.keys import key_text
from rapo_jax.buffer.trajectories import AgentTrajectory
from rapo_jax.config import Settings
from rapo_jax.config.read import read_settings
from rapo_jax.config.sources import resolve
from rapo_jax.model.transformer import forward
from rapo_jax.run.folders import buffer_folder, cold_start_folder
from rapo_jax.run.policy import load_policy
from rapo_jax.run.run import Run, open_run
from rapo_jax.sampling.encoders import device_encoder
from rapo_jax.sampling.tapes import steps_without_retrieved
from rapo_jax.search.ngram import NgramEncoder
from rapo_jax.stages.buffer import KEY_ORDERS
from rapo_jax.tasks.stream import load_questions
from rapo_jax.train.buffer import each_text_once, read_trajectories, text_encoder
from rapo_jax.train.sft import as_segments, examples_of
from rapo_jax.types import Params, Source

FORWARD_ROWS = 64


class States(NamedTuple):
    """States before the steps t > 0 of trajectories, one after another."""

    question: list[str]
    history: list[str]
    decision: list[str]
    """Of the step that follows."""
    label: list[tuple[str, int]]
    """Kind of the question, and t without the steps that decide nothing new ('check')."""
    hidden_ME: np.ndarray


def settings_of(workdir: Path) -> Settings:
    """The run's settings; cold start and buffer are those of the run, wherever it is opened."""
    s = read_settings(resolve(None, workdir=workdir).config)
    sft, buffer = cold_start_folder(s, workdir), buffer_folder(s, workdir)
    return dataclasses.replace(
        s,
        sft=dataclasses.replace(s.sft, folder=str(sft)),
        buffer=dataclasses.replace(s.buffer, folder=str(buffer)),
    )


def expert_trajectories(run: Run, count: int) -> tuple[list[AgentTrajectory], dict[str, str]]:
    """An expert's trajectories on `count` training questions, and the kind of each question."""
    questions = load_questions(run.questions["train"])
    questions = questions[:: max(len(questions) // count, 1)][:count]
    groups = run_agents(
        run.task.expert(run.world, error=0.0),
        questions,
        run.tools,
        max_calls=run.settings.rollout.max_calls,
        samples=1,
        rng_seed=0,
    )
    trajectories = [
        AgentTrajectory(q.id, q.question, steps_without_retrieved(group[0]), 1.0, "expert")
        for q, group in zip(questions, groups, strict=True)
    ]
    return trajectories, {q.id: q.kind for q in questions}


def states_of(
    run: Run, params: Params, trajectories: Sequence[AgentTrajectory], kinds: dict[str, str]
) -> States:
    """The states of all trajectories that fit into a row."""
    examples = examples_of(run, [(each.question, as_segments(each)) for each in trajectories])
    program = jax.jit(lambda params, token_BT: forward(run.model, params, token_BT))
    columns: tuple[list, ...] = ([], [], [], [], [])
    for start in range(0, len(examples.length_B), FORWARD_ROWS):
        rows = slice(start, start + FORWARD_ROWS)
        token_BT = examples.token_BT[rows]
        padding = ((0, FORWARD_ROWS - len(token_BT)), (0, 0))
        hidden_BTD = np.asarray(program(params, np.pad(token_BT, padding)))
        for b in range(len(token_BT)):
            trajectory = trajectories[examples.number_B[start + b]]
            ends = step_ends(examples.source_BT[start + b], examples.step_BT[start + b])
            place = 0
            for t, decision, history in later_steps(run, trajectory):
                place += decision != "check"
                label = (kinds.get(trajectory.question_id, ""), place)
                values = (trajectory.question, history, decision, label, hidden_BTD[b, ends[t]])
                for column, value in zip(columns, values, strict=True):
                    column.append(value)
    return States(*columns[:4], np.stack(columns[4]))


def step_ends(source_T: np.ndarray, step_T: np.ndarray) -> dict[int, int]:
    """Step t -> position of the last token before it."""
    return {
        t: int(np.flatnonzero((step_T == t) & (source_T == Source.POLICY))[0]) - 1
        for t in np.unique(step_T[source_T == Source.POLICY]).tolist()
    }


def later_steps(run: Run, trajectory: AgentTrajectory) -> Iterator[tuple[int, str, str]]:
    """(t, decision, text before it) of the steps t > 0."""
    for t, step in enumerate(trajectory.steps):
        if t:
            yield t, run.task.decision(step) or "", "".join(trajectory.steps[:t])


def key_texts(run: Run, states: States, mask: str) -> list[str]:
    both = zip(states.question, states.history, strict=True)
    chars = run.settings.retrieval.max_chars
    return [key_text(question, history, mask=mask, max_chars=chars) for question, history in both]


def ngram_keys(run: Run, held: States, asked: States, mask: str) -> tuple[np.ndarray, np.ndarray]:
    """Keys of both by n-grams that are fitted to those of the buffer."""
    texts, width = key_texts(run, held, mask), run.settings.retrieval.width
    encoder = NgramEncoder.fit(texts, width=width, orders=KEY_ORDERS)
    return encoder(texts), encoder(key_texts(run, asked, mask))


def minilm_keys(
    run: Run, folder: Path, held: States, asked: States, mask: str
) -> tuple[np.ndarray, np.ndarray]:
    """Keys of both by the sentence encoder in `folder`."""
    changes = {"encoder": "minilm", "encoder_folder": str(folder)}
    settings = dataclasses.replace(run.settings.retrieval, **changes)
    embed = each_text_once(text_encoder(device_encoder(settings)))
    return embed(key_texts(run, held, mask)), embed(key_texts(run, asked, mask))


def unit(hidden_ME: np.ndarray) -> np.ndarray:
    return hidden_ME / np.linalg.norm(hidden_ME, axis=1, keepdims=True)


def shares(held: States, asked: States, keys: tuple[np.ndarray, np.ndarray]) -> dict[tuple, list]:
    """Label -> whether the nearest step trace takes the decision of each state."""
    nearest = np.argmax(keys[1] @ keys[0].T, axis=1)
    right: dict[tuple, list] = defaultdict(list)
    for state, row in enumerate(nearest):
        if asked.decision[state] != "check":
            right[asked.label[state]].append(held.decision[row] == asked.decision[state])
    return right


def main(arguments: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("workdir", type=Path)
    parser.add_argument("--policy", type=Path, help="weights of the present states")
    parser.add_argument("--minilm", type=Path, help="the folder of all-MiniLM-L6-v2")
    parser.add_argument("--questions", type=int, default=300)
    flags = parser.parse_args(arguments)
    settings = settings_of(flags.workdir.absolute())
    with tempfile.TemporaryDirectory() as scratch:
        run = open_run(settings, Path(scratch))
        start = load_policy(run, run.cold_start)
        moved = load_policy(run, flags.policy) if flags.policy else start
        trajectories, kinds = expert_trajectories(run, flags.questions)
        asked = states_of(run, moved, trajectories, kinds)
        held = states_of(run, start, read_trajectories(run), {})
        mean_E = held.hidden_ME.mean(0)
        keys = {
            "n-grams": ngram_keys(run, held, asked, settings.retrieval.mask),
            "without a mask": ngram_keys(run, held, asked, ""),
            "hidden state": (unit(held.hidden_ME), unit(asked.hidden_ME)),
            "less the mean": (unit(held.hidden_ME - mean_E), unit(asked.hidden_ME - mean_E)),
        }
        if flags.minilm:
            for name, mask in (("MiniLM", settings.retrieval.mask), ("MiniLM without a mask", "")):
                keys[name] = minilm_keys(run, flags.minilm, held, asked, mask)
        right = {name: shares(held, asked, pair) for name, pair in keys.items()}
        print(f"{len(held.decision)} step traces, {len(asked.decision)} states")
        print("| kind | place | states | " + " | ".join(keys) + " |")
        print("| --- | --- | --- |" + " --- |" * len(keys))
        for each in right.values():
            each["all", 0] = [x for values in each.values() for x in values]
        for label in sorted(right["n-grams"]):
            numbers = " | ".join(f"{np.mean(right[name][label]):.2f}" for name in keys)
            print(f"| {label[0]} | {label[1]} | {len(right['n-grams'][label])} | {numbers} |")
        run.close()


if __name__ == "__main__":
    main(sys.argv[1:])

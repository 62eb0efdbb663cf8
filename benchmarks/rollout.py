"""Measures the rollout: tokens a CPU-second and the share of slots used, in a world of many turns.

    python benchmarks/rollout.py --rows=64 --slots=32
    python benchmarks/rollout.py --rows=64 --slots=64 --delay=0.2,3

A random policy of 4 layers of width 256, in float32, calls a search about every 64 tokens, at most
3 times, in rows of up to 1,664 tokens. Prints one line of JSON. For figures of one core put
`taskset -c 0` before the command.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import random
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.gpu_host import no_python
from benchmarks.gpu_sizes import settings_of
from benchmarks.peers import machine
from benchmarks.random_model import CORPUS, random_params
from rapo_jax.config import ModelSettings
from rapo_jax.environment import Environment
from rapo_jax.model.sharding import make_mesh
from rapo_jax.sampling.sampler import Sampler
from rapo_jax.sampling.tapes import segments
from rapo_jax.search.ngram import NgramEncoder
from rapo_jax.tasks.schema import Question
from rapo_jax.text.protocol import parse_step
from rapo_jax.text.tokens import Tokens, build_tokenizer, load_tokens
from rapo_jax.tools.observation import Observation, Tool
from rapo_jax.tools.search import local_search
from rapo_jax.types import Source, Trajectory

GROUP = 16
MAX_CALLS = 3
STEP_TOKENS = 64
"""One in so many tokens closes a call."""


class World(NamedTuple):
    sampler: Sampler
    environment: Environment
    search: SlowSearch
    params: object
    questions: list[Question]


class SlowSearch:
    """A search whose calls take a time between two bounds that depends on the call alone.

    Without a delay it is answered at once, as a search in memory is.
    """

    def __init__(self, search: Tool, low: float, high: float) -> None:
        self._search, self._low, self._high = search, low, high
        self.asleep = False
        self.immediate = not high

    def seconds(self, call: str) -> float:
        return random.Random(call).uniform(self._low, self._high) if self.asleep else 0.0

    def __call__(self, calls: list[str]) -> list[Observation]:
        for call in calls:
            time.sleep(self.seconds(call))
        return self._search(calls)


def model_settings(layers: int) -> ModelSettings:
    _, model = settings_of("tiny", adapters=0)
    sizes = {"vocab": 2048, "width": 256, "ffn": 768, "heads": 8, "kv_heads": 2, "head_width": 32}
    return dataclasses.replace(model, layers=layers, dtype="float32", tied=True, **sizes)


def make_world(
    folder: Path, *, rows: int, slots: int, driver: str, delay: tuple[float, ...], layers: int = 4
) -> World:
    model = model_settings(layers=layers)
    settings, _ = settings_of("tiny", adapters=0)
    r = dataclasses.replace(
        settings.rollout,
        driver=driver,
        prompt_tokens=128,
        step_tokens=256,
        observation_tokens=128,
        max_tokens=1664,
        max_calls=MAX_CALLS,
        slots=slots,
        absorb_chunk=32,
    )
    build_tokenizer(folder / "tokenizer", CORPUS, vocab_size=1024)
    tokens = with_calls(load_tokens(folder / "tokenizer", vocab_size=model.vocab))
    documents = [f"fact {n}: this is about word number {n}" for n in range(1000)]
    encode = NgramEncoder.fit(documents, width=256, orders=(1, 2))
    search = SlowSearch(local_search(documents, encode, passages=3), *delay)
    environment = Environment(
        tokens,
        {"search": search, "python": no_python},
        observation_tokens=r.observation_tokens,
        retrieved_tokens=r.retrieved_tokens,
    )
    mesh = make_mesh(jax.devices()[:1])
    sampler = Sampler(
        model,
        r,
        tokens,
        environment,
        mesh,
        system="Answer the question.",
        embed=lambda key_BE: key_BE,
        query_shape=jax.ShapeDtypeStruct((8,), np.float32),
    )
    params = sampler.load(random_params(model, mesh))
    questions = [
        Question(str(q), f"who is number {q}?", ("word",), "", "") for q in range(rows // GROUP)
    ]
    return World(sampler, environment, search, params, questions)


def with_calls(tokens: Tokens) -> Tokens:
    """Gives every id a text: words that differ, and tags that open and close a search."""
    texts = [f" w{i}".encode() for i in range(len(tokens.bytes_V))]
    texts[::STEP_TOKENS] = [b"</search>"] * len(texts[::STEP_TOKENS])
    texts[1 :: STEP_TOKENS // 4] = [b"<search>"] * len(texts[1 :: STEP_TOKENS // 4])
    return dataclasses.replace(tokens, bytes_V=texts)


def measure(world: World, seed: int) -> tuple[Trajectory, dict[str, float]]:
    world.environment.take_counts()
    wall, cpu = time.perf_counter(), time.process_time()
    trajectory = world.sampler.sample(
        world.params,
        jax.random.key(seed),
        world.questions,
        group_size=GROUP,
        n_hybrid=0,
        temperature=1.0,
    )
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    counts = world.environment.take_counts()
    sampled = int((trajectory.source_BT == Source.POLICY).sum())
    return trajectory, {
        "wall_s": wall,
        "cpu_s": cpu,
        "sampled": sampled,
        "tokens_per_cpu_s": sampled / cpu,
        "host_s": counts["seconds"],
        **world.sampler.counts,
        "slots_used": world.sampler.counts["sampled"] / world.sampler.counts["slot_ticks"],
    }


def critical_seconds(world: World, trajectory: Trajectory, token_s: float) -> float:
    """The longest row's time if it were alone: its searches, and `token_s` for each token."""
    rows = []
    for b in range(len(trajectory.length_B)):
        steps = [
            s.text
            for s in segments(world.environment.tokens, trajectory, b)
            if s.source == Source.POLICY
        ]
        slept = sum(world.search.seconds(parse_step(text).content) for text in steps[:MAX_CALLS])
        rows.append(slept + token_s * (trajectory.source_BT[b] == Source.POLICY).sum())
    return max(rows)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=int, default=64, help=f"a multiple of {GROUP}")
    parser.add_argument("--slots", type=int, default=32)
    parser.add_argument("--driver", default="jit", choices=("jit", "host"))
    parser.add_argument("--delay", default="0,0", help="least and most seconds of a search")
    parser.add_argument("--repeats", type=int, default=3)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        world = make_world(
            Path(folder),
            rows=given.rows,
            slots=given.slots,
            driver=given.driver,
            delay=tuple(map(float, given.delay.split(","))),
        )
        runs = []
        for seed in range(given.repeats + 1):
            world.search.asleep = False
            trajectory, run = measure(world, seed)
            if given.delay != "0,0" and seed:
                token_s = run["wall_s"] / run["ticks"]
                world.search.asleep = True
                _, run = measure(world, seed)
                run["critical_s"] = critical_seconds(world, trajectory, token_s)
            runs.append(run)
    line = {name: statistics.median(run[name] for run in runs[1:]) for name in runs[-1]}
    print(json.dumps(vars(given) | line | machine()))


if __name__ == "__main__":
    main()

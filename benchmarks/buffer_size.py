"""Measures a Step-Trace Buffer of the paper's size: seconds, peak memory, bytes, recall@1.

    python benchmarks/buffer_size.py [--traces 169489] [--width 256] [--queries 1000]

Prints a line for each phase: makes up trajectories, builds the buffer from them as the buffer stage
does (built-in encoder, ScaNN tree), and searches the nearest trace of states that are in no
trajectory, by the index and exactly. Exit status 1: recall below 0.95.
"""

from __future__ import annotations

import argparse
import resource
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from rapo_jax.buffer.buffer import StepTraceBuffer
from rapo_jax.buffer.trajectories import AgentTrajectory, Splitting, split, split_all
from rapo_jax.search.nearest import make_index
from rapo_jax.search.ngram import NgramEncoder

WORDS, TOPICS, WORDS_OF_TOPIC = 30_000, 2_000, 60
STEPS = (2, 3, 4, 5)
SAMPLES = 5
"""Trajectories of a question (K)."""
BATCH = 64
"""Queries of one search: rows of a rollout that retrieve at the same time."""


def words(rng: np.random.Generator, count: int) -> np.ndarray:
    """Synthetic words of two to four syllables."""
    syllables = np.array([a + b for a in "bdfgklmnprstvz" for b in ("a", "e", "i", "o", "u", "ar")])
    drawn = rng.integers(len(syllables), size=(count, 4))
    lengths = rng.integers(2, 5, size=count)
    return np.array(["".join(syllables[row[:n]]) for row, n in zip(drawn, lengths, strict=True)])


class Topics:
    """Makes texts about topics: half their words are special to the topic, half common (Zipf)."""

    def __init__(self, seed: int) -> None:
        rng = np.random.default_rng(seed)
        self.word = words(rng, WORDS)
        self.of_topic = rng.integers(WORDS, size=(TOPICS, WORDS_OF_TOPIC))

    def text(self, rng: np.random.Generator, topic: int, count: int) -> str:
        common = np.minimum(rng.zipf(1.3, size=count), WORDS) - 1
        special = self.of_topic[topic, rng.integers(WORDS_OF_TOPIC, size=count)]
        return " ".join(self.word[np.where(rng.random(count) < 0.5, special, common)])

    def trajectory(self, question: int, sample: int) -> AgentTrajectory:
        """The `sample`-th way to solve a question; its question and topic are the same for all."""
        question_rng = np.random.default_rng([1, question])
        topic = int(question_rng.integers(TOPICS))
        rng = np.random.default_rng([2, question, sample])
        steps = [
            f"<think>{self.text(rng, topic, 30)}</think><search>{self.text(rng, topic, 5)}</search>"
            f"<result> {self.text(rng, topic, 60)}</result>"
            for _ in range(int(rng.choice(STEPS)) - 1)
        ]
        answer = f"<answer>\\boxed{{{self.text(rng, topic, 2)}}}</answer>"
        steps.append(f"<think>{self.text(rng, topic, 30)}</think>{answer}")
        return AgentTrajectory(
            f"q{question}", self.text(question_rng, topic, 18), steps, 1.0, "synthetic"
        )


def made_trajectories(topics: Topics, wanted: int) -> list[AgentTrajectory]:
    """Trajectories with at least `wanted` step traces in all, the last one cut to fit."""
    made: list[AgentTrajectory] = []
    left, question = wanted, 0
    while left > 0:
        for sample in range(SAMPLES):
            trajectory = topics.trajectory(question, sample)
            made.append(trajectory._replace(steps=trajectory.steps[:left]))
            left -= len(made[-1].steps)
            if left <= 0:
                break
        question += 1
    return made


def unseen_states(topics: Topics, questions: int, count: int, how: Splitting) -> list[str]:
    """Keys of further samples of some questions: the queries of a rollout."""
    rng = np.random.default_rng(3)
    keys: list[str] = []
    while len(keys) < count:
        trajectory = topics.trajectory(int(rng.integers(questions)), SAMPLES + len(keys))
        step_traces = split(trajectory, how)
        keys.append(step_traces[int(rng.integers(1, len(step_traces)))].key)
    return keys


def print_time(name: str, started: float) -> None:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(f"{name:<28}{time.perf_counter() - started:9.1f} s   peak {peak:6.2f} GiB", flush=True)


def size_of(folder: Path) -> float:
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file()) / 1e6


def batches(key_BE: np.ndarray) -> Iterator[np.ndarray]:
    for start in range(0, len(key_BE), BATCH):
        yield key_BE[start : start + BATCH]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--traces", type=int, default=169_489)
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--queries", type=int, default=1_000)
    parser.add_argument("--max_chars", type=int, default=4_000)
    parser.add_argument("--index", default="tree")
    args = parser.parse_args()
    how = Splitting("step", include_answers=True, mask="", max_chars=args.max_chars)

    started = time.perf_counter()
    topics = Topics(0)
    trajectories = made_trajectories(topics, args.traces)
    questions = len({trajectory.question_id for trajectory in trajectories})
    print(f"{args.traces} step traces of {len(trajectories)} trajectories, {questions} questions")
    print_time("generated", started)

    started = time.perf_counter()
    step_traces = split_all(trajectories, how)
    keys = [step_trace.key for step_trace in step_traces]
    encoder = NgramEncoder.fit(keys, width=args.width, orders=(1, 2))
    print_time("encoder fitted", started)
    del keys

    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        started = time.perf_counter()
        buffer = StepTraceBuffer.build(
            step_traces,
            how,
            encode=encoder,
            encoder_identity=encoder.identity,
            tokenizer_fingerprint="none",
            count_tokens=lambda text: len(text.split()),
            info={},
        )
        buffer.save(folder / "traces")
        print_time("embedded and saved", started)
        started = time.perf_counter()
        index = make_index(buffer.key_ME, kind=args.index, folder=folder / "index")
        print_time(f"index built ({index.kind})", started)
        print(
            f"on disk: traces {size_of(folder / 'traces'):.0f} MB, "
            f"index {size_of(folder / 'index'):.0f} MB"
        )
        query_BE = encoder(unseen_states(topics, questions, args.queries, how))
        started = time.perf_counter()
        score_B = np.concatenate([index.search(key_BE)[1] for key_BE in batches(query_BE)])
        spent = time.perf_counter() - started
        print(f"search: {1000 * spent / len(query_BE):.2f} ms a query, {BATCH} at a time")
        started = time.perf_counter()
        best_B = np.concatenate(
            [(key_BE @ buffer.key_ME.T).max(axis=1) for key_BE in batches(query_BE)]
        )
        print_time("exact search", started)
    recall = float(np.mean(score_B >= best_B - 1e-6))
    print(f"recall@1 {recall:.3f} on {len(query_BE)} queries (at least 0.95 is expected)")
    print_time("", time.perf_counter())
    sys.exit(recall < 0.95)


if __name__ == "__main__":
    main()

"""The gates of a cold start before RL: one-hop accuracy, and whether it follows retrieved steps."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from rapo_jax.distributed import is_first, on_first
from rapo_jax.io.files import read_json, write_json
from rapo_jax.model.sharding import row_shards
from rapo_jax.run.keys import StageKey, stage_key
from rapo_jax.run.policy import load_policy
from rapo_jax.run.run import Run
from rapo_jax.sampling.batches import even_size, padded_batches
from rapo_jax.sampling.tapes import segments
from rapo_jax.tasks.schema import Task
from rapo_jax.tasks.stream import load_questions
from rapo_jax.text.protocol import Segment
from rapo_jax.train.buffer import attach_buffer
from rapo_jax.train.evaluate import evaluate, spread
from rapo_jax.types import Params, Source

ONE_HOP_QUESTIONS = 256
"""Most questions of `one_hop_accuracy`: evaluate.rows of a call must change no result."""


def check_cold_start(run: Run) -> dict[str, float]:
    """Measures the gates at temperature 1, once for each cold start, and enforces them.

    Whether retrieved steps are followed is measured where the run retrieves some.

    Raises:
        ValueError: a gate of `sft.gate_...` is not reached; from a weaker start RL goes down, and
        a policy that does not follow retrieved steps makes RAPO equal to GRPO.
    """
    path, s = run.cold_start / "gates.json", run.settings
    measures: dict[str, Callable[[Run, Params], float]] = {"one_hop": one_hop_accuracy}
    if s.reads_buffer and s.n_hybrid:
        measures["follow"] = follow_rate
    gates = on_first(lambda: read_json(path, default={}))
    if missing := measures.keys() - gates.keys():
        params = load_policy(run, run.cold_start)
        for name in sorted(missing):
            gates[name] = measures[name](run, params)
        if is_first():
            write_json(path, gates)
    shown = {"one_hop": "one-hop accuracy", "follow": "retrieved steps followed"}
    values = ", ".join(f"{shown[name]} {gates[name]:.3f}" for name in measures)
    print(f"[gates] {values} (temperature 1)", flush=True)
    for name, gate in (("one_hop", s.sft.gate_one_hop), ("follow", s.sft.gate_follow)):
        if name in measures and gates[name] < gate:
            raise ValueError(
                f"sft.gate_{name}={gate}: the cold start reached {gates[name]:.3f}; train it "
                "longer (sft.steps), with more examples (sft.examples) or another seed"
            )
    return {name: gates[name] for name in measures}


def one_hop_accuracy(run: Run, params: Params) -> float:
    """Accuracy on held-out questions of the easiest kind, at temperature 1."""
    easy = [q for q in load_questions(run.questions["eval"]) if q.kind == run.task.kinds[0]]
    some = spread(easy, ONE_HOP_QUESTIONS)
    scores = evaluate(run, params, some, temperature=1.0, key=StageKey.GATE_ONE_HOP)
    return scores["accuracy"]


def follow_rate(run: Run, params: Params) -> float:
    """Share of retrieved steps whose decision the policy takes next, where it can be taken.

    A random trace is retrieved at every boundary (noise 1), so that a policy which knows the right
    decision does not seem to follow. Decisions that cannot be taken at that point do not count.
    """
    s = run.settings
    attach_buffer(run)
    questions = spread(load_questions(run.questions["eval"]), s.rollout.questions)
    size = even_size(len(questions), most=s.rollout.questions, shards=row_shards(run.mesh))
    (batch,) = padded_batches(questions, size=size)
    trajectory = run.sampler.sample(
        run.sampler.load(params),
        stage_key(s, StageKey.GATE_FOLLOW),
        batch.local_items,
        group_size=s.rollout.group_size,
        n_hybrid=s.rollout.n_hybrid,
        temperature=1.0,
        probability=1.0,
        noise=1.0,
    )
    run.environment.take_counts()
    judged = len(batch.items) * s.rollout.group_size  # rows of padding are behind them
    rows = (segments(run.tokens, trajectory, b) for b in range(judged))
    return followed_share(run.task, rows)


def followed_share(task: Task, rows: Iterable[list[Segment]]) -> float:
    """Share of the retrieved steps of all rows that count and are followed; 0 if none counts."""
    followed = [outcome for row in rows for outcome in followed_steps(task, row)]
    return sum(followed) / max(len(followed), 1)


def followed_steps(task: Task, row: list[Segment]) -> list[bool]:
    """For each retrieved step of a row whose decision can be taken: whether it is taken next."""
    followed, history = [], ""
    for before, after in zip(row, row[1:], strict=False):
        history += before.text
        if before.source != Source.RETRIEVED or after.source != Source.POLICY:
            continue
        wanted = task.retrieved_decision(history)
        if wanted is not None and task.can_follow(wanted, history):
            followed.append(task.decision(after.text) == wanted)
    return followed

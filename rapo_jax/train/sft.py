"""The cold start: supervised training on scripted trajectories, and examples to imitate.

Only POLICY tokens have a loss; retrieved traces and observations are context, as in the rollout.
"""

from __future__ import annotations

import dataclasses
import time
from collections import deque
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from rapo_jax.buffer.agents import run_agents
from rapo_jax.buffer.trajectories import AgentTrajectory
from rapo_jax.config import ModelSettings, RolloutSettings
from rapo_jax.distributed import is_first, make_once, on_first
from rapo_jax.io.files import write_json
from rapo_jax.method.tape import policy_mask
from rapo_jax.model.scoring import log_probs
from rapo_jax.run.checkpoint import Checkpoints
from rapo_jax.run.keys import HostKey, host_rng
from rapo_jax.run.metrics import Progress
from rapo_jax.run.policy import fresh_state
from rapo_jax.run.run import Run
from rapo_jax.tasks.stream import load_questions
from rapo_jax.text.chat import without_opening
from rapo_jax.text.observations import observation_ids, retrieved_ids
from rapo_jax.text.protocol import Segment
from rapo_jax.text.tokens import Tokens
from rapo_jax.train.loop import check_skips, checkpointed_steps
from rapo_jax.train.optimizer import learning_rate_schedule, make_optimizer
from rapo_jax.train.update import LossSums, Updater, fetched
from rapo_jax.types import Batch, Params, Source, TrainState


class Examples(NamedTuple):
    """Tapes to imitate, in no order; T is `rollout.max_tokens`."""

    token_BT: np.ndarray
    source_BT: np.ndarray
    step_BT: np.ndarray
    length_B: np.ndarray
    number_B: np.ndarray
    """Index of each example's trajectory among those given."""


def encode_examples(
    tokens: Tokens,
    trajectories: Sequence[tuple[str, Sequence[Segment]]],
    r: RolloutSettings,
    *,
    system: str,
) -> Examples:
    """Tapes of (question, segments), token for token as a rollout of `r` writes them.

    Trajectories longer than a row are left out; the caller compares the counts.
    """
    kept = []
    for trajectory, (question, segments) in enumerate(trajectories):
        ids = tokens.prompt_ids(system, question)
        opened, _ = tokens.opened(ids)
        source, step = [Source.PROMPT] * len(ids), [0] * len(ids)
        for number, segment in enumerate(segments):
            if segment.source == Source.TOOL:
                text = _observation(segment.text)
                fresh = observation_ids(tokens, text, room=r.observation_tokens)
            elif segment.source == Source.RETRIEVED:
                text = segment.text.removeprefix("<retrieve>").removesuffix("</retrieve>")
                fresh = retrieved_ids(tokens, text, room=r.retrieved_tokens)
            else:
                text = segment.text if number else without_opening(segment.text, opened)
                fresh = tokens.encode_protocol(text)
            ids += fresh
            source += [segment.source] * len(fresh)
            step += [segment.step] * len(fresh)
        if len(ids) <= r.max_tokens:
            kept.append((trajectory, (ids, source, step)))
    token_BT, source_BT, step_BT = tables = np.zeros((3, len(kept), r.max_tokens), np.int32)
    for row, (_, columns) in enumerate(kept):
        tables[:, row, : len(columns[0])] = columns
    length_B = np.array([len(ids) for _, (ids, *_) in kept], np.int64)
    number_B = np.array([number for number, _ in kept], np.int64)
    return Examples(token_BT, source_BT, step_BT, length_B, number_B)


def _observation(result: str) -> str:
    """The observation in `<result> ...</result>`.

    Other agents leave the blank out; white space is then the layout of their text.
    """
    text = result.rstrip().removeprefix("<result>").removesuffix("</result>")
    return text[1:] if text.startswith(" ") else text.strip()


def batch_of(examples: Examples, index: np.ndarray) -> tuple[Batch, np.ndarray]:
    """The examples at `index` as a batch of one update; imitation has no advantages or ratios."""
    zero = np.zeros(len(index), np.float32)
    source_BT = examples.source_BT[index]
    blank = np.zeros(source_BT.shape, np.float32)
    return Batch(examples.token_BT[index], source_BT, blank, zero, zero), examples.length_B[index]


def draw_batch(examples: Examples, *, seed: int, step: int, batch: int) -> np.ndarray:
    """Rows of update `step`: `batch` examples of similar length, a pure function of its arguments.

    An epoch is a fresh permutation; blocks of eight batches are sorted by length before they are
    cut, and the batches of a block come in random order.
    """
    rows_total = len(examples.length_B)
    block = 8 * batch
    per_epoch = max(rows_total // block, 1) * 8
    epoch, at = divmod(step, per_epoch)
    rng = host_rng(seed, HostKey.SFT_ORDER, epoch)
    order = rng.permutation(rows_total)
    index = order[(at // 8) * block : (at // 8 + 1) * block]
    index = index[np.argsort(examples.length_B[index], kind="stable")]
    turn = host_rng(seed, HostKey.SFT_BATCHES, epoch, at // 8).permutation(8)[at % 8]
    batches = -(-len(index) // batch)  # fewer than eight only where there are few examples
    start = min(turn % batches * batch, len(index) - batch)
    return index[start : start + batch]


def demonstrations(run: Run) -> list[tuple[str, Sequence[Segment]]]:
    """`sft.examples` trajectories of the task's demonstrator on questions that are not held out.

    A share of them reads random retrieved traces and follows them: without these a small model
    makes no use of a retrieved step.
    """
    s = run.settings
    agent = run.task.demonstrator(
        run.world,
        follow=s.sft.follow,
        weak_first=s.sft.weak_first,
        weak_habit=s.sft.weak_habit,
        weak_stop=s.sft.weak_stop,
    )
    questions = [q for split in ("train", "expert") for q in load_questions(run.questions[split])]
    inject = run.task.injector(run.world, probability=s.sft.inject)
    shown: list[tuple[str, Sequence[Segment]]] = []
    shares = ((None, 1 - s.sft.inject_share), (inject, s.sft.inject_share))
    for number, (injector, share) in enumerate(shares):
        wanted = round(s.sft.examples * share)
        if wanted == 0:
            continue
        groups = run_agents(
            agent,
            questions,
            run.tools,
            max_calls=s.rollout.max_calls,
            samples=-(-wanted // len(questions)),
            rng_seed=2 * s.seed + number,
            inject=injector,
        )
        rows = [
            (question.question, group[sample])
            for sample in range(len(groups[0]))
            for question, group in zip(questions, groups, strict=True)
        ]
        shown += rows[:wanted]
    return shown


def train_cold_start(run: Run) -> None:
    """Trains `COLDSTART/checkpoints`, or keeps a finished one; resumes if killed."""
    make_once(run.cold_start, lambda: _train(run), name="sft")


def _train(run: Run) -> None:
    folder, s, started = run.cold_start, run.settings, time.perf_counter()
    examples = _cold_start_examples(run)
    o = dataclasses.replace(
        s.optimizer,
        learning_rate=s.sft.learning_rate,
        warmup=s.sft.warmup,
        schedule="cosine",
        clip_norm=s.sft.clip_norm,
        weight_decay=0.0,
    )
    optimizer = make_optimizer(o, learning_rate_schedule(o, steps=s.sft.steps))
    state = fresh_state(run, optimizer)
    store = Checkpoints(folder / "checkpoints", keep=1, lora=run.model.lora)
    if store.latest() is not None:
        state, _ = store.restore(state)
    updater = imitation_updater(run, optimizer, state)
    first, skips = int(state.step), 0
    run.metrics.cut_back("sft", first)
    losses: deque[float] = deque(maxlen=64)  # a batch is of one length, so single losses jump
    progress = Progress("sft", total=s.sft.steps, done=first)

    def save(number: int) -> None:
        store.save(number, state, {})

    for step in checkpointed_steps(first, s.sft.steps, every=s.sft.checkpoint_every, save=save):
        index = draw_batch(examples, seed=s.seed, step=step, batch=s.sft.batch)
        state, metrics = updater.update(state, *batch_of(examples, index), None)
        metrics = fetched(metrics)
        skips = skips + 1 if metrics["skipped"] else 0
        losses.append(metrics["loss"])
        progress.show(step + 1, loss=float(np.mean(losses)))
        if step % 10 == 0 or step + 1 == s.sft.steps:
            shown = {"loss/sft": "loss", "loss/grad_norm": "grad_norm", "loss/skipped": "skipped"}
            values = {name: metrics[key] for name, key in shown.items()}
            run.metrics.write("sft", step, values | {"update/padding": metrics["padding"]})
        check_skips(skips, step=step)
    store.close()
    done = {"seconds": time.perf_counter() - started, "examples": len(examples.length_B)}
    if is_first():
        write_json(folder / "done.json", done)


def _cold_start_examples(run: Run) -> Examples:
    """The demonstrations as tapes.

    Raises:
        ValueError: too few of them fit into a row.
    """
    s = run.settings
    shown = [  # made by the first process alone: tools may answer other processes differently
        (question, [Segment(*segment) for segment in row])
        for question, row in on_first(lambda: demonstrations(run))
    ]
    examples = examples_of(run, shown)
    if len(examples.length_B) < s.sft.batch:
        raise ValueError(
            f"rollout.max_tokens={s.rollout.max_tokens}: only {len(examples.length_B)} of "
            f"{len(shown)} demonstrations fit into a row; raise it"
        )
    print(
        f"[sft] {len(examples.length_B)} of {len(shown)} demonstrations, "
        f"{examples.length_B.mean():.0f} tokens each",
        flush=True,
    )
    return examples


def examples_of(run: Run, trajectories: Sequence[tuple[str, Sequence[Segment]]]) -> Examples:
    """`encode_examples` with the limits of this run's rollout."""
    return encode_examples(run.tokens, trajectories, run.settings.rollout, system=run.system)


def examples_of_trajectories(run: Run, trajectories: Sequence[AgentTrajectory]) -> Examples:
    """The buffer's trajectories as tapes; prints how many of them fit into a row.

    Raises:
        ValueError: none of them fits.
    """
    examples = examples_of(run, [(each.question, as_segments(each)) for each in trajectories])
    limit, count = f"rollout.max_tokens={run.settings.rollout.max_tokens}", len(trajectories)
    if not len(examples.length_B):
        raise ValueError(
            f"{limit}: none of the {count} trajectories of the buffer {run.buffer} fits into a "
            "row; raise it"
        )
    print(
        f"[imitation] {len(examples.length_B)} of {count} trajectories of the buffer fit into "
        f"{limit}",
        flush=True,
    )
    return examples


def imitation_loss(model: ModelSettings) -> LossSums:
    """Mean negative log-likelihood of POLICY tokens: the cold start, and the SFT baseline."""

    def loss(params: Params, batch: Batch, row_mask_B: jax.Array, reference: Params | None):
        mask_BT = policy_mask(batch.source_BT, row_mask_B)
        tokens = mask_BT.sum().astype(jnp.float32)
        nll = -log_probs(model, params, batch.token_BT, mask_BT).sum()
        return nll, (tokens, {"tokens": tokens, "nll": jax.lax.stop_gradient(nll)})

    return loss


def imitation_updater(
    run: Run, optimizer: optax.GradientTransformation, state: TrainState
) -> Updater:
    """An updater of the imitation loss, with this run's micro-batches."""
    loss = imitation_loss(run.model)
    return Updater(loss, optimizer, state, mesh=run.mesh, rl=run.settings.rl)


def as_segments(trajectory: AgentTrajectory) -> list[Segment]:
    """The steps of an agent's trajectory as segments: what it wrote, and its observations.

    White space between a call and its result is layout: a rollout's step ends with its call.
    """
    segments = []
    for step, text in enumerate(trajectory.steps):
        written, opening, result = text.partition("<result>")
        segments.append(Segment(Source.POLICY, step, written.rstrip() if opening else written))
        if opening:
            segments.append(Segment(Source.TOOL, step, opening + result))
    return segments

"""The rollouts of a training step: Q groups of G rows, sampled, completed and scored."""

from __future__ import annotations

import dataclasses
import time
from collections import defaultdict
from collections.abc import Callable, Mapping
from typing import NamedTuple

import jax
import numpy as np

from rapo_jax.config import Settings
from rapo_jax.distributed import allgather_rows, is_first, local_part
from rapo_jax.method.tape import hybrid_mask, rows_of_groups, with_rows
from rapo_jax.run.keys import HostKey, batch_key, host_rng
from rapo_jax.run.run import Run
from rapo_jax.sampling.batches import row_questions
from rapo_jax.sampling.sampler import FOREVER
from rapo_jax.tasks import Question
from rapo_jax.tasks.schema import question_of
from rapo_jax.tasks.stream import QuestionStream
from rapo_jax.train.buffer import read_trajectories
from rapo_jax.train.measures import RowScores, common_failure, score_rows
from rapo_jax.train.replay import PastGroup, Replay
from rapo_jax.train.sft import Examples, examples_of_trajectories
from rapo_jax.types import Params, Status, Trajectory


class Groups(NamedTuple):
    """The rollouts of all processes; row b belongs to group b // G."""

    questions: tuple[Question, ...]
    trajectory: Trajectory
    """numpy arrays."""
    scores: RowScores
    off_policy_B: np.ndarray
    """1 at rows that the present policy did not sample: the buffer's, or past ones."""
    slot_counts: Mapping[str, int]
    """`Sampler.counts` of all batches that were sampled."""
    further_batches: int
    """Batches that were sampled after the first one."""
    scoring_seconds: float


class AgentTapes(NamedTuple):
    """The buffer's trajectories as tapes, and which of them answer a question, by its id."""

    examples: Examples
    of_question: Mapping[str, list[int]]


def read_agent_tapes(run: Run) -> AgentTapes:
    """The buffer's trajectories that fit into a row."""
    trajectories = read_trajectories(run)
    examples = examples_of_trajectories(run, trajectories)
    of_question = defaultdict(list)
    for row, number in enumerate(examples.number_B):
        of_question[trajectories[number].question_id].append(row)
    return AgentTapes(examples, dict(of_question))


def sample_batch(
    run: Run,
    stream: QuestionStream,
    weights: Params,
    key: jax.Array,
    number: int = 0,
    *,
    step: int,
    probability: float,
    agent_tapes: AgentTapes | None = None,
    choice=None,
) -> Groups:
    """G rollouts of each question of the next batch; `number` counts the batches of the step.

    With `agent_tapes`, the last row of a group is one of the question's trajectories of the buffer,
    where it has one.
    """
    s, local_questions = run.settings, next(stream)
    if choice is not None:
        run.environment.row_origins = choice.draw([q.question for q in local_questions], step)
    trajectory = run.sampler.sample(
        weights,
        batch_key(key, number),
        local_questions,
        group_size=s.rollout.group_size,
        n_hybrid=s.n_hybrid,
        temperature=s.rollout.temperature,
        probability=probability,
        noise=s.retrieval.noise,
        last_retrieval=1 if s.retrieval.unit == "trajectory" else FOREVER,
        tree_rows=s.rollout.tree_rows,
    )
    rows = allgather_rows([dataclasses.asdict(question) for question in local_questions])
    questions = tuple(map(question_of, rows))
    off_policy_B = np.zeros(len(trajectory.length_B), np.float32)
    if agent_tapes is not None:
        rng = host_rng(s.seed, HostKey.AGENT_TAPES, step, number)
        trajectory, off_policy_B = put_agent_tapes(
            trajectory, questions, agent_tapes, rng, group_size=s.rollout.group_size
        )
    started = time.perf_counter()
    return Groups(
        questions,
        trajectory,
        _score(run, step, trajectory, questions),
        off_policy_B,
        slot_counts=run.sampler.counts,
        further_batches=0,
        scoring_seconds=time.perf_counter() - started,
    )


def completed(
    first: Groups,
    sample: Callable[[int], Groups],
    s: Settings,
    *,
    step: int,
    stream: QuestionStream,
    replay: Replay | None = None,
) -> Groups:
    """The groups of a step's first batch as `config.method` completes them.

    With `rl.resample`, groups of equal rewards are replaced by groups of the next questions, from
    at most `rl.resample` further batches `sample(1)`, `sample(2)`, ... With `replay`, past groups
    complete the batch.
    """
    if s.rl.resample:
        return resampled(first, sample, s)
    if replay is not None:
        first_epoch = stream.epochs <= 1
        rng = host_rng(s.seed, HostKey.REPLAY, step)
        return replayed(first, sample, replay, s, rng, first_epoch=first_epoch)
    return first


def _score(
    run: Run, step: int, trajectory: Trajectory, questions: tuple[Question, ...]
) -> RowScores:
    asked = row_questions(questions, run.settings.rollout.group_size)
    local = local_part(list(enumerate(asked)))
    scores = score_rows(run, trajectory, local)
    failure = common_failure(run.tokens, trajectory, scores) if step == 0 else ""
    if failure and is_first():
        print(f"[rl] warning: in the first batch {failure}", flush=True)
    return scores


def put_agent_tapes(
    trajectory: Trajectory,
    questions: tuple[Question, ...],
    agent_tapes: AgentTapes,
    rng: np.random.Generator,
    *,
    group_size: int,
) -> tuple[Trajectory, np.ndarray]:
    """Replaces the last row of each group by a trajectory of the buffer, drawn from its question's.

    Returns the trajectory, and off_policy_B: 1 at the rows that were replaced. A question without
    a trajectory keeps its group.
    """
    last, chosen = [], []
    for q, question in enumerate(questions):
        if found := agent_tapes.of_question.get(question.id):
            last.append((q + 1) * group_size - 1)
            chosen.append(found[rng.integers(len(found))])
    rows = np.array(last, np.int64)
    off_policy_B = with_rows(np.zeros(len(trajectory.length_B), np.float32), rows, 1)

    def put(table: np.ndarray, values: object) -> np.ndarray:
        return with_rows(table, rows, values)

    t, e = trajectory, agent_tapes.examples
    return Trajectory(
        token_BT=put(t.token_BT, e.token_BT[chosen]),
        source_BT=put(t.source_BT, e.source_BT[chosen]),
        step_BT=put(t.step_BT, e.step_BT[chosen]),
        logp_BT=put(t.logp_BT, 0),
        entropy_BT=put(t.entropy_BT, 0),
        status_B=put(t.status_B, int(Status.ANSWERED)),
        length_B=put(t.length_B, e.length_B[chosen]),
    ), off_policy_B


def resampled(groups: Groups, sample: Callable[[int], Groups], s: Settings) -> Groups:
    """Replaces groups of equal rewards by groups of further batches (DAPO's dynamic sampling).

    The new groups are those with a spread in `sample(1)`, `sample(2)`, ..., at most `rl.resample`
    batches. Groups for which none was found stay.
    """
    for number in range(1, s.rl.resample + 1):
        equal_Q = equal_groups(groups, s.rollout.group_size)
        if not equal_Q.any():
            break
        more = sample(number)
        taken = np.flatnonzero(~equal_groups(more, s.rollout.group_size))[: equal_Q.sum()]
        groups = _replaced(groups, np.flatnonzero(equal_Q)[: len(taken)], more, taken)
        groups = groups._replace(further_batches=number)
    return groups


def replayed(
    fresh: Groups,
    sample: Callable[[int], Groups],
    replay: Replay,
    s: Settings,
    rng: np.random.Generator,
    *,
    first_epoch: bool,
) -> Groups:
    """The fresh groups, and past ones up to `rollout.questions`; stores the fresh ones.

    In the first epoch, and while there are too few past groups, all groups are fresh, from further
    batches `sample(1)`, `sample(2)`, ...
    """
    missing = s.rollout.questions - len(fresh.questions)
    known = {question.id for question in fresh.questions}
    past = [] if first_epoch else replay.draw(rng, missing, without=known)
    while not past and len(fresh.questions) < s.rollout.questions:
        number = fresh.further_batches + 1
        fresh = _joined(fresh, sample(number))._replace(further_batches=number)
    for place, question in enumerate(fresh.questions):
        rows = slice(place * s.rollout.group_size, (place + 1) * s.rollout.group_size)
        parts = (fresh.trajectory, fresh.scores)
        replay.add(
            PastGroup(question, *jax.tree.map(lambda x, rows=rows: np.array(x[rows]), parts))
        )
    if not past:
        return fresh
    sampled = [(fresh.trajectory, fresh.scores), *((old.trajectory, old.scores) for old in past)]
    trajectory, scores = jax.tree.map(lambda *parts: np.concatenate(parts), *sampled)
    return fresh._replace(
        questions=(*fresh.questions, *(each.question for each in past)),
        trajectory=trajectory,
        scores=scores,
        off_policy_B=np.concatenate(
            [fresh.off_policy_B, np.ones(missing * s.rollout.group_size, np.float32)]
        ),
    )


def _joined(groups: Groups, more: Groups) -> Groups:
    questions = groups.questions + more.questions
    return _merged(groups, more, questions, lambda *rows: np.concatenate(rows))


def _merged(
    groups: Groups,
    more: Groups,
    questions: tuple[Question, ...],
    merge: Callable[[np.ndarray, np.ndarray], np.ndarray],
) -> Groups:
    """The groups of both batches of a step; `merge` makes one array of rows of theirs."""
    rows = [(g.trajectory, g.scores, g.off_policy_B) for g in (groups, more)]
    trajectory, scores, off_policy_B = jax.tree.map(merge, *rows)
    return groups._replace(
        questions=questions,
        trajectory=trajectory,
        scores=scores,
        off_policy_B=off_policy_B,
        slot_counts={name: n + more.slot_counts[name] for name, n in groups.slot_counts.items()},
        scoring_seconds=groups.scoring_seconds + more.scoring_seconds,
    )


def equal_groups(groups: Groups, group_size: int) -> np.ndarray:
    """Whether all outcome rewards of a group are equal; [Q].

    Nothing can be learned from it then, but a penalty of length (`rl.overlong`).
    """
    return np.ptp(groups.scores.reward_B.reshape(-1, group_size), axis=1) == 0


def sampled_rows(s: Settings, groups: Groups) -> int:
    """Rows that the policy sampled in the step: past groups are none, replaced rows are some."""
    return s.fresh_questions * s.rollout.group_size * (1 + groups.further_batches)


def hybrid_rows(s: Settings) -> np.ndarray:
    """The rows of a step that may retrieve, [B]."""
    r = s.rollout
    return hybrid_mask(r.questions, group_size=r.group_size, n_hybrid=s.n_hybrid)


def _replaced(groups: Groups, places: np.ndarray, more: Groups, taken: np.ndarray) -> Groups:
    """The groups at `places` replaced by the groups `taken` of `more`."""
    questions = list(groups.questions)
    for place, number in zip(places, taken, strict=True):
        questions[place] = more.questions[number]
    group_size = len(groups.off_policy_B) // len(questions)
    rows, others = (rows_of_groups(index, group_size) for index in (places, taken))
    return _merged(
        groups, more, tuple(questions), lambda table, new: with_rows(table, rows, new[others])
    )

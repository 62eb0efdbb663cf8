"""What a step of RL appends to files of the workdir: trajectories, and rows of skipped updates."""

from __future__ import annotations

import json

import numpy as np

from rapo_jax.distributed import is_first
from rapo_jax.io.jsonl import append_lines
from rapo_jax.method.calibrate import Calibration
from rapo_jax.run.run import Run
from rapo_jax.sampling.batches import row_questions
from rapo_jax.sampling.tapes import trajectory_lines
from rapo_jax.train.groups import Groups, hybrid_rows
from rapo_jax.types import Array, Batch, Source


def write_skipped(
    run: Run, step: int, skipped_rows: np.ndarray, groups: Groups, batch: Batch
) -> None:
    """Appends the rows of skipped updates to WORKDIR/skipped.jsonl, and logs where they are."""
    if not is_first():
        return
    path, group_size = run.workdir / "skipped.jsonl", run.settings.rollout.group_size
    lines = ""
    for b in sorted(set(skipped_rows.tolist())):
        # As text: NaN and infinity are no JSON. Of advantages of tokens, the largest.
        advantage_X = np.atleast_1d(batch.advantage[b])
        numbers = {
            "reward": groups.scores.reward_B[b],
            "advantage": advantage_X[np.argmax(np.abs(advantage_X))],
            "logp": batch.old_logp_BT[b].sum(),
        }
        row = {
            "step": step,
            "stage": "rl",
            "row": b,
            "question_id": groups.questions[b // group_size].id,
            "length": int((np.asarray(batch.source_BT[b]) != Source.PAD).sum()),
            **{name: str(float(number)) for name, number in numbers.items()},
        }
        lines += json.dumps(row) + "\n"
    append_lines(path, lines)
    print(
        f"[rl] warning: step {step}: an update was not finite and was skipped; its rows: {path}",
        flush=True,
    )


def row_advantage(advantage: Array, source_BT: Array) -> np.ndarray:
    """The advantage of each row, [B]: of advantages of tokens the mean over the policy's own."""
    if advantage.ndim == 1:
        return np.asarray(advantage)
    policy_BT = np.asarray(source_BT) == Source.POLICY
    sum_B = np.where(policy_BT, advantage, 0).sum(1)
    return sum_B / np.maximum(policy_BT.sum(1), 1)


def write_trajectories(
    run: Run, step: int, groups: Groups, calibration: Calibration, advantage: Array
) -> None:
    """Appends the step's rows to WORKDIR/trajectories.jsonl."""
    if not is_first():
        return
    s, off_policy_B = run.settings, groups.off_policy_B > 0
    of_agents_B = off_policy_B & s.of_method.takes_agent_tapes
    lines = trajectory_lines(
        run.tokens,
        groups.trajectory,
        row_questions(groups.questions, s.rollout.group_size),
        labels={"step": step, "stage": "rl"},
        hybrid_B=hybrid_rows(s) & ~of_agents_B,
        off_policy_B=off_policy_B,
        has_entropy_B=~of_agents_B,
        reward_B=groups.scores.reward_B.astype(np.float32),
        advantage_B=row_advantage(advantage, groups.trajectory.source_BT),
        retrieval_B=calibration.retrieval_reward_B,
        z_BS=calibration.retrieval_reward_BS,
    )
    append_lines(run.workdir / "trajectories.jsonl", lines)

"""The SFT baseline: imitates the trajectories of the Step-Trace Buffer, and samples nothing."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import numpy as np

from rapo_jax.config import Settings
from rapo_jax.run.keys import HostKey, host_rng
from rapo_jax.run.policy import load_policy, start_state
from rapo_jax.run.run import Run
from rapo_jax.train.buffer import load_buffer, read_trajectories
from rapo_jax.train.loop import PolicyTraining, policy_optimizer
from rapo_jax.train.sft import Examples, batch_of, examples_of_trajectories, imitation_updater
from rapo_jax.train.update import Updater, fetched
from rapo_jax.types import TrainState


def imitation_folder(run: Run) -> Path:
    """The workdir of the imitation that comes before RL."""
    return run.workdir / "imitation"


def train_imitation_first(run: Run) -> None:
    """Imitates the buffer for `rl.imitation_steps` in `imitation_folder`, unless that is done."""
    s, replace = run.settings, dataclasses.replace
    settings = replace(
        s,
        rl=replace(s.rl, steps=s.rl.imitation_steps or s.rl.steps),
        sft=replace(s.sft, folder=str(run.cold_start)),  # those of `run`, not of its workdir
        buffer=replace(s.buffer, folder=str(run.buffer)),
    )
    workdir = imitation_folder(run)
    workdir.mkdir(exist_ok=True)
    train_imitation(replace(run, workdir=workdir, settings=settings), stage="imitation")


def train_imitation(run: Run, *, stage: str = "rl") -> PolicyTraining:
    """Trains to `rl.steps`, from the newest checkpoint if there is one; metrics are of `stage`."""
    s = run.settings
    buffer = load_buffer(run)
    examples = examples_of_trajectories(run, read_trajectories(run))
    optimizer, _ = policy_optimizer(s)
    state = start_state(run, load_policy(run, run.cold_start), optimizer)
    updater = imitation_updater(run, optimizer, state)
    training = PolicyTraining(run, state, buffer=buffer.identity, stage=stage)
    with closing(training):
        for step in training.steps():
            training.end_step(
                step, *train_on_examples(updater, s, training.state, examples, step.number)
            )
    return training


def train_on_examples(
    updater: Updater, s: Settings, state: TrainState, examples: Examples, step: int
) -> tuple[TrainState, Callable[[], dict[str, float]]]:
    """Takes `rl.epochs * rl.mini_batches` imitation updates on random examples, as large as in RL.

    Returns the new state, which may still be computed, and a function that waits for it and returns
    the step's metrics.
    """
    rows_each = s.rollout.questions * s.rollout.group_size // s.rl.mini_batches
    records = []
    for part in range(s.rl.mini_batches * s.rl.epochs):
        rng = host_rng(s.seed, HostKey.IMITATION, step, part)
        count = len(examples.length_B)
        index = rng.choice(count, rows_each, replace=rows_each > count)
        state, metrics = updater.update(state, *batch_of(examples, index), None)
        records.append(metrics)

    def means() -> dict[str, float]:
        updates = [fetched(metrics) for metrics in records]
        return {
            "loss/sft": float(np.mean([metrics["loss"] for metrics in updates])),
            "loss/skipped": sum(metrics["skipped"] for metrics in updates),
            "update/padding": updates[-1]["padding"],
        }

    return state, means

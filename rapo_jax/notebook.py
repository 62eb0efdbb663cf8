"""A run in a notebook: open it, roll out questions, look at trajectories, take training steps.

docs/notebook.ipynb shows it. The functions are those of a training; a session adds none of its own.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np

from rapo_jax.config.read import read_settings
from rapo_jax.config.sources import resolve
from rapo_jax.io.files import claimed
from rapo_jax.method.calibrate import Calibration
from rapo_jax.model.hf_config import refuse_contradictions
from rapo_jax.run.keys import StageKey, stage_key
from rapo_jax.run.run import open_run
from rapo_jax.sampling.tapes import segments
from rapo_jax.stages.buffer import build_buffer
from rapo_jax.stages.job import prepare_workdir, raise_steps
from rapo_jax.stages.table import released
from rapo_jax.tasks import Question
from rapo_jax.tasks.stream import QuestionStream
from rapo_jax.train.groups import Groups, completed, sample_batch
from rapo_jax.train.rl import open_rl, probability_at, rl_step, shaped_reward
from rapo_jax.train.sft import train_cold_start


class Advantages(NamedTuple):
    """Rewards, calibration and advantages of groups of rollouts."""

    reward_B: np.ndarray
    advantage: np.ndarray
    """[B]; [B, T] for methods whose advantages are those of tokens."""
    calibration: Calibration
    """Step entropies, retrieval rewards, shares of retrieved tokens."""


class Session:
    """An open run, on one process: its policy, tools and training state."""

    def __init__(
        self,
        config: str,
        workdir: str | Path,
        changes: Mapping[str, object] | None = None,
        *,
        devices: Sequence[jax.Device] | None = None,
    ) -> None:
        """Opens the run of `workdir`, from its newest checkpoint if it has one.

        Where `config.stages` has 'sft' or 'buffer', a missing cold start or buffer is made first.

        Args:
            config: the name of a config of this package, such as 'tiny', a Python file or a
                workdir's config.json.
            workdir: the folder that the run writes into.
            changes: values by dotted key, such as {"rl.m": 0.1}.
            devices: those to compute on; None for all.

        Raises:
            ValueError: a value is invalid, the method samples nothing, or the workdir belongs to
            another config.
        """
        flags = [(name, str(value)) for name, value in (changes or {}).items()]
        resolved = resolve(config, flags=flags)
        settings, folder = read_settings(resolved.config), Path(workdir)
        refuse_contradictions(settings.model, resolved.overridden)
        file = resolved.file.resolve() if resolved.file else None
        if not settings.of_method.samples:
            raise ValueError(
                f"method={settings.method!r}: it samples no rollouts, which a session is made of; "
                "train it from the command line"
            )
        self._open = ExitStack()
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._open.enter_context(claimed(folder, key="workdir"))
            fresh = prepare_workdir(folder, resolved.config, config_file=str(file or ""))
            raise_steps(settings, folder)
            with released(folder, fresh=fresh):
                self.run = open_run(settings, folder, devices=devices)
                self._open.callback(self.run.close)
                if "sft" in settings.stages:
                    train_cold_start(self.run)
                if "buffer" in settings.stages:
                    build_buffer(self.run)
                self.parts, self.training = open_rl(self.run)
        except BaseException:
            self._open.close()
            raise
        self._open.callback(self.training.close)
        self._steps = self.training.steps()

    def rollout(self, questions: Sequence[Question], *, seed: int = 0) -> Groups:
        """`rollout.group_size` rollouts of each question, scored, as the next step would do them.

        Row b is rollout b % G of question b // G; the last `rollout.n_hybrid` of a group may
        retrieve from the buffer. Nothing is trained, and the training's questions do not move on.

        Raises:
            ValueError: there is no question, or something else in its place.
        """
        s, step = self.run.settings, self.training.step
        batch, size = list(questions), len(questions)
        if not all(isinstance(each, Question) for each in batch) or not batch:
            raise ValueError("questions: give one or more rapo_jax.tasks.Question")
        stream = QuestionStream(itertools.repeat(batch), seed=seed, batch=size, rows=size)
        sample = partial(
            sample_batch,
            self.run,
            stream,
            self.run.sampler.load(self.training.state.params),
            jax.random.fold_in(stage_key(s, StageKey.NOTEBOOK), seed),
            step=step,
            probability=probability_at(s, step) if s.n_hybrid else 0.0,
            agent_tapes=self.parts.agent_tapes,
        )
        groups = completed(sample(), sample, s, step=step, stream=stream)
        self.run.environment.take_counts()
        return groups

    def advantages(self, groups: Groups) -> Advantages:
        """The rewards and advantages of `config.method`."""
        s, trajectory = self.run.settings, groups.trajectory
        reward_B = shaped_reward(s, groups)
        calibration, _ = jax.device_get(self.parts.calibrate(trajectory, reward_B))
        advantage = self.parts.method.advantage(s, trajectory, reward_B, calibration)
        return Advantages(reward_B, np.asarray(advantage), calibration)

    def train_step(self) -> dict[str, float]:
        """Takes the next step of the training, and returns its metrics.

        The step's held-out evaluation, checkpoint and lines of metrics.jsonl are those of a run
        from the command line, which may continue this one.

        Raises:
            ValueError: all `rl.steps` are taken.
        """
        last, training = self.run.settings.rl.steps, self.training
        step = next(self._steps, None)
        if step is None:
            raise ValueError(f"rl.steps={last}: all steps are taken; raise it in a new session")
        state, metrics = rl_step(self.run, self.parts, training.state, step.number)
        values = metrics()
        training.end_step(step, state, lambda: values)
        if step.number + 1 == last:
            next(self._steps, None)  # the last checkpoint and evaluation
        return values

    def text(self, groups: Groups, row: int) -> str:
        """The response of a row, each segment after its source: POLICY, TOOL or RETRIEVED."""
        parts = segments(self.run.tokens, groups.trajectory, row)
        return "\n".join(f"{part.source.name:>9} {part.step}: {part.text}" for part in parts)

    def close(self) -> None:
        """Ends tools and logs. Steps since the last checkpoint are taken again by a later run."""
        self._open.close()

"""Training with RAPO: rollout -> rewards -> advantages -> updates, one line of values a step."""

from __future__ import annotations

import dataclasses
import math
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from rapo_jax.config import Settings
from rapo_jax.tasks import Question
from rapo_jax.tasks.stream import load_questions, question_stream
from rapo_jax.train.buffer import attach_buffer, read_trajectories
from rapo_jax.train.calibration import guards, make_calibrator
from rapo_jax.train.checkpoint import Checkpoints
from rapo_jax.train.distributed import Stopped, allgather_json, is_first, stop_asked
from rapo_jax.train.evaluate import evaluate, spread
from rapo_jax.train.measures import (
    cpu_seconds,
    host_metrics,
    judge,
    rollout_metrics,
    shared_counts,
)
from rapo_jax.train.metrics import Progress, open_to_append
from rapo_jax.train.mini_batches import train_on_examples, train_on_rollouts
from rapo_jax.train.optimizer import learning_rate_schedule, make_optimizer
from rapo_jax.train.policy import load_policy, start_state
from rapo_jax.train.run import Run, stage_key
from rapo_jax.train.sampler import FOREVER
from rapo_jax.train.sft import Examples, as_segments, examples_of, imitation_updater
from rapo_jax.train.tapes import write_trajectories
from rapo_jax.train.update import Updater, rapo_loss
from rapo_jax.types import Batch, Params

RL_STAGE = 2


def probability_at(settings: Settings, step: int) -> float:
    """Retrieval probability of a step: constant as in the paper, or decaying to 0."""
    start, done = settings.retrieval.probability, step / settings.rl.steps
    left = {
        "constant": 1.0,
        "linear": 1.0 - done,
        "cosine": 0.5 * (1.0 + math.cos(math.pi * done)),
    }
    return start * left[settings.retrieval.schedule]


class RlStage:
    """The state and programs of RL on one open run; `train` runs it to its last step."""

    def __init__(self, run: Run) -> None:
        s = run.settings
        self.run, self.s = run, s
        self.buffer = attach_buffer(run) if s.method != "grpo" else None
        self.imitated: Examples | None = None
        if s.method == "sft":
            shown = [(t.question, as_segments(t)) for t in read_trajectories(run)]
            self.imitated = examples_of(run, shown)
        o = s.optimizer
        self.schedule = learning_rate_schedule(
            learning_rate=o.learning_rate,
            warmup=o.warmup,
            schedule=o.schedule,
            steps=s.rl.steps * s.rl.epochs * s.rl.mini_batches,
        )
        optimizer = make_optimizer(
            self.schedule,
            clip_norm=o.clip_norm,
            b1=o.b1,
            b2=o.b2,
            eps=o.eps,
            weight_decay=o.weight_decay,
        )
        start = load_policy(run, run.cold_start)
        self.reference: Params | None = start if s.rl.kl else None
        self.state = start_state(run, jax.tree.map(jnp.copy, start), optimizer)
        self.updater = (
            imitation_updater(run, optimizer, self.state)
            if s.method == "sft"
            else Updater(
                rapo_loss(run.model, s.rl),
                optimizer,
                self.state,
                mesh=run.mesh,
                buckets=s.rl.buckets,
                micro_tokens=s.rl.micro_tokens,
            )
        )
        self.calibrate = make_calibrator(s)
        self.stream = question_stream(
            run.questions["train"],
            seed=s.seed,
            batch=s.rollout.questions,
            process_index=jax.process_index(),
            process_count=jax.process_count(),
        )
        self.held_out = spread(load_questions(run.questions["eval"]), s.evaluate.limit)
        self.store = Checkpoints(
            run.workdir / "checkpoints", keep=s.checkpoint.keep, lora=run.model.lora
        )
        self.cpu_seconds = 0.0
        self.seconds = dict.fromkeys(("reshard", "rollout", "host", "update", "rl"), 0.0)

    @property
    def step(self) -> int:
        """Rollout batches trained on."""
        return int(self.state.step) // (self.s.rl.epochs * self.s.rl.mini_batches)

    def train(self) -> dict[str, Any]:
        """Runs to `rl.steps`, from the newest checkpoint if there is one."""
        s = self.s
        for line in guards(s):
            print(f"[rl] warning: {line}", flush=True)
        if self.store.latest() is not None:
            self._restore()
        progress = Progress("rl", total=s.rl.steps, done=self.step, every_s=10)
        while self.step < s.rl.steps:
            step = self.step
            if stop_asked():
                self._save()
                self.store.close()
                raise Stopped(f"checkpoint saved at step {step} of {s.rl.steps}")
            values: dict[str, float] = {}
            if s.evaluate.every and step % s.evaluate.every == 0:
                values |= self._held_out()
            wall, cpu = time.perf_counter(), cpu_seconds()
            key = jax.random.fold_in(stage_key(s, RL_STAGE), step)
            if self.imitated is not None:
                self.state, found = train_on_examples(
                    self.updater, s, self.state, self.imitated, step
                )
                values |= found
            else:
                values |= self._step(step, key)
            values["time/step"] = time.perf_counter() - wall
            self.cpu_seconds += cpu_seconds() - cpu
            self.seconds["rl"] += values["time/step"]
            values["cpu/total"] = self.cpu_seconds
            self.run.metrics.write("rl", step, values)
            progress.show(
                step + 1,
                **{k.split("/")[1]: v for k, v in values.items() if k in SHOWN},
            )
            if (step + 1) % s.checkpoint.every == 0 or step + 1 == s.rl.steps:
                self._save()
        if s.evaluate.every:
            values = self._held_out() | {"cpu/total": self.cpu_seconds}
            self.run.metrics.write("rl", s.rl.steps, values)
        self.store.close()
        return {"cpu_seconds": self.cpu_seconds, "seconds": self.seconds}

    def _held_out(self) -> dict[str, float]:
        found = evaluate(self.run, self.state.params, self.held_out)
        return {f"heldout/{name}": found[name] for name in ("accuracy", "hidden") if name in found}

    def _step(self, step: int, key: jax.Array) -> dict[str, float]:
        """One rollout batch and the updates on it."""
        run, s = self.run, self.s
        questions = next(self.stream)
        row_questions = [q for q in questions for _ in range(s.rollout.group_size)]
        started = time.perf_counter()
        rollout_key, order_key = jax.random.split(key)
        probability = probability_at(s, step) if s.n_hybrid else 0.0
        weights = jax.block_until_ready(run.sampler.load(self.state.params))
        loaded = time.perf_counter()
        trajectory = run.sampler.sample(
            weights,
            rollout_key,
            questions,
            group_size=s.rollout.group_size,
            n_hybrid=s.n_hybrid,
            temperature=s.rollout.temperature,
            probability=probability,
            noise=s.retrieval.noise,
            last_retrieval=1 if s.retrieval.unit == "trajectory" else FOREVER,
        )
        del weights  # the update needs the room
        counts = shared_counts(run.environment.take_counts())
        rolled = time.perf_counter()
        judged = judge(
            run.tokens, trajectory, row_questions, metric=s.task.metric, reward=run.reward
        )
        measured = time.perf_counter()
        found, diagnostics = jax.device_get(self.calibrate(trajectory, judged.reward_B))
        batch = Batch(
            trajectory.token_BT,
            trajectory.source_BT,
            trajectory.logp_BT,
            found.advantage_B,
            found.retrieved_share_B.astype(np.float32),
        )
        length_B = np.asarray(trajectory.length_B, np.int64)
        rate = float(self.schedule(int(self.state.step)))
        self.state, updates = train_on_rollouts(
            self.updater, s, self.state, batch, length_B, order_key, self.reference
        )
        updates["loss/learning_rate"] = rate
        ended = time.perf_counter()
        host = counts.get("seconds", 0.0) + measured - rolled
        phases = {
            "reshard": loaded - started,
            "rollout": rolled - loaded - counts.get("seconds", 0.0),
            "host": host,
            "update": ended - measured,
        }
        for name, seconds in phases.items():
            self.seconds[name] += seconds
        hybrid_B = np.tile(
            np.arange(s.rollout.group_size) >= s.rollout.group_size - s.n_hybrid,
            s.rollout.questions,
        )
        if s.log.trajectories and step % s.log.trajectory_every == 0:
            self._dump(step, trajectory, row_questions, hybrid_B, judged.reward_B, found)
        values = rollout_metrics(trajectory, judged, hybrid_B, found)
        return {
            **values,
            **{name: float(x) for name, x in diagnostics.items()},
            **host_metrics(counts, found, run.tokens.user_tools),
            **updates,
            "rollout/retrieval_probability": probability,
            **{f"time/{name}": seconds for name, seconds in phases.items()},
        }

    def _dump(self, step, trajectory, own_questions, hybrid_B, reward_B, found) -> None:
        parts = allgather_json([dataclasses.asdict(question) for question in own_questions])
        if not is_first():
            return
        row_questions = [Question(**each) for part in parts for each in part]
        with open_to_append(self.run.workdir / "trajectories.jsonl") as file:
            write_trajectories(
                file,
                self.run.tokens,
                trajectory,
                row_questions,
                about={"step": step, "stage": "rl"},
                hybrid_B=hybrid_B,
                reward_B=reward_B,
                advantage_B=found.advantage_B,
                retrieval_B=found.retrieval_reward_B,
                z_BS=found.retrieval_reward_BS,
            )

    def _save(self) -> None:
        about = {
            "stream": dict(self.stream.get_state()),
            "buffer": self.buffer.identity if self.buffer else "",
            "tokenizer": self.run.tokens.fingerprint,
            "cpu_seconds": self.cpu_seconds,
            "seconds": self.seconds,
        }
        self.store.save(self.step, self.state, about)

    def _restore(self) -> None:
        self.state, about = self.store.restore(self.state)
        identity = self.buffer.identity if self.buffer else ""
        if about["buffer"] != identity:
            raise ValueError(
                f"buffer.folder={str(self.run.buffer)!r}: this run began with another buffer "
                f"({about['buffer'][:12]}…, now {identity[:12]}…); give that one back or start anew"
            )
        self.stream.set_state(about["stream"])
        self.cpu_seconds, self.seconds = about["cpu_seconds"], self.seconds | about["seconds"]
        print(f"[rl] resumed at step {self.step}", flush=True)


SHOWN = ("reward/mean", "reward/accuracy", "heldout/accuracy", "loss/sft", "entropy/policy")

"""Shared by the training loops: steps, checkpoints, resume, signals, held-out evaluation."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import optax

from rapo_jax.config import Settings
from rapo_jax.distributed import Stopped, is_first, on_first, stop_asked
from rapo_jax.run.checkpoint import Checkpoints
from rapo_jax.run.export import write_folder
from rapo_jax.run.metrics import Progress, cut_back
from rapo_jax.run.run import Run
from rapo_jax.tasks.stream import QuestionStream, load_questions
from rapo_jax.train.evaluate import evaluate, spread
from rapo_jax.train.measures import cpu_seconds
from rapo_jax.train.optimizer import learning_rate_schedule, make_optimizer
from rapo_jax.train.replay import FOLDER as REPLAY
from rapo_jax.train.replay import Replay
from rapo_jax.types import TrainState

SHOWN = ("reward/mean", "reward/accuracy", "heldout/accuracy", "loss/sft", "entropy/policy")
"""Metrics in the progress line."""
SAMPLES = 4
"""Most held-out questions whose texts are shown."""
MOST_SKIPS = 3
"""Steps in a row with a skipped update that end a run."""
PHASES = ("reshard", "rollout", "host", "update", "step")


def checkpointed_steps(
    first: int, total: int, *, every: int, save: Callable[[int], None]
) -> Iterator[int]:
    """Yields the steps from `first` on; saves after every `every`-th and after the last.

    The caller takes the step before it asks for the next; `save` writes a checkpoint of its state
    under the number of steps taken.

    Raises:
        Stopped: a signal asked for it; a checkpoint is saved.
    """
    for step in range(first, total):
        if stop_asked():
            save(step)
            raise Stopped(f"checkpoint saved at step {step} of {total}")
        yield step
        if (step + 1) % every == 0 or step + 1 == total:
            save(step + 1)


def check_skips(skips: int, *, step: int) -> None:
    """Ends the run after `MOST_SKIPS` steps in a row with a skipped update.

    Raises:
        ValueError: there are as many up to this step.
    """
    if skips == MOST_SKIPS:
        raise ValueError(
            f"loss/skipped: {MOST_SKIPS} steps in a row, up to step {step}, had an update that is "
            "not finite. The weights are those of the last finite one; of RL, skipped.jsonl has "
            "the rows. Fix the reward function, or lower the learning rate"
        )


def policy_optimizer(s: Settings) -> tuple[optax.GradientTransformation, optax.Schedule]:
    """The optimizer of `config.optimizer` for all updates of a run, and its schedule."""
    updates = s.rl.steps * s.rl.epochs * s.rl.mini_batches
    schedule = learning_rate_schedule(s.optimizer, steps=updates)
    return make_optimizer(s.optimizer, schedule), schedule


class TrainingStep(NamedTuple):
    """A step to take, and what was measured before it."""

    number: int
    held_out: dict[str, float]
    wall: float
    cpu: float


class EndedTrainingStep(NamedTuple):
    """A step whose updates may still be running: wall and CPU-seconds without the wait for them."""

    step: TrainingStep
    metrics: Callable[[], dict[str, float]]
    wall: float
    cpu: float


class PolicyTraining:
    """A policy's training to `rl.steps`, resumed from the newest checkpoint if there is one.

    A loop takes each of `steps()` and hands its new state and metrics to `end_step`. A step's
    metrics are fetched and written when the next step has ended, or before an evaluation, a
    checkpoint or `close`: until then its updates run while the host works.

    Raises:
        ValueError: the checkpoint was made with another buffer or with other adapters; or see
        `check_skips`.
    """

    def __init__(
        self,
        run: Run,
        state: TrainState,
        *,
        buffer: str,
        stream: QuestionStream | None = None,
        replay: Replay | None = None,
        stage: str = "rl",
    ) -> None:
        """`buffer` is the identity of the Step-Trace Buffer, "" without one; metrics and progress
        are of `stage`."""
        s = run.settings
        self.run, self.state = run, state
        self.seconds, self.cpu_seconds = dict.fromkeys(PHASES, 0.0), 0.0
        """Of all steps, also those before a resume; wall seconds by phase of a step."""
        self._buffer, self._stream, self._stage, self._skips = buffer, stream, stage, 0
        self._replay = replay
        self._ended: EndedTrainingStep | None = None
        self._held_out = spread(load_questions(run.questions["eval"]), s.evaluate.limit)
        self._store = Checkpoints(
            run.workdir / "checkpoints", keep=s.checkpoint.keep, lora=run.model.lora
        )
        if self._store.latest() is not None:
            self._restore()
        writes = -(-max(s.rl.steps - self.step, 0) // s.checkpoint.every)
        self._store.check_room(self.state, writes=writes)
        run.metrics.cut_back(stage, self.step)
        if is_first():
            for name in ("trajectories.jsonl", "skipped.jsonl"):
                cut_back(run.workdir / name, stage, self.step)
        self._progress = Progress(stage, total=s.rl.steps, done=self.step)

    @property
    def step(self) -> int:
        """Steps taken: rollout batches, or as many updates of an imitation."""
        rl = self.run.settings.rl
        return int(self.state.step) // (rl.epochs * rl.mini_batches)

    def steps(self) -> Iterator[TrainingStep]:
        """The steps left, each after an evaluation where one is due; see `checkpointed_steps`."""
        s = self.run.settings
        every = s.evaluate.every
        for number in checkpointed_steps(
            self.step, s.rl.steps, every=s.checkpoint.every, save=self._save
        ):
            held_out = {}
            if every and number % every == 0:
                self._write_ended()
                held_out = self._evaluate(number)
            self._export(number)
            yield TrainingStep(number, held_out, time.perf_counter(), cpu_seconds())
        self._export(s.rl.steps)
        if every:
            values = self._evaluate(s.rl.steps) | {"cpu/total": self.cpu_seconds}
            self.run.metrics.write(self._stage, s.rl.steps, values)

    def end_step(
        self, step: TrainingStep, state: TrainState, metrics: Callable[[], dict[str, float]]
    ) -> None:
        """Takes the new state; `metrics` waits for it and returns the step's metrics."""
        self.state = state
        ended = EndedTrainingStep(
            step, metrics, time.perf_counter() - step.wall, cpu_seconds() - step.cpu
        )
        before, self._ended = self._ended, ended
        self._write(before)

    def close(self) -> None:
        """Writes the metrics of the last step, also where a later one failed."""
        try:
            self._write_ended()
        finally:
            self._store.close()

    def _write_ended(self) -> None:
        ended, self._ended = self._ended, None
        self._write(ended)

    def _write(self, ended: EndedTrainingStep | None) -> None:
        """Writes the metrics of a step; those named time/... are added up in `seconds`."""
        if ended is None:
            return
        step, metrics, wall, cpu = ended
        waited, cpu_before = time.perf_counter(), cpu_seconds()
        values = {**step.held_out, **metrics()}
        waited = time.perf_counter() - waited
        if "time/update" in values:
            values["time/update"] += waited
        values["time/step"] = wall + waited
        self.cpu_seconds += cpu + cpu_seconds() - cpu_before
        values["cpu/total"] = self.cpu_seconds
        for phase in PHASES:
            self.seconds[phase] += values.get(f"time/{phase}", 0.0)
        self.run.metrics.write(self._stage, step.number, values)
        self._skips = self._skips + 1 if values["loss/skipped"] else 0
        check_skips(self._skips, step=step.number)
        shown = {name.split("/")[1]: values[name] for name in values if name in SHOWN}
        self._progress.show(step.number + 1, **shown)

    def _evaluate(self, step: int) -> dict[str, float]:
        every, last = self.run.settings.log.samples_every, self.run.settings.rl.steps
        due = every and (step % every == 0 or step == last) and self._stage == "rl"
        samples = SAMPLES if due else 0
        scores = evaluate(self.run, self.state.params, self._held_out, samples=samples)
        if samples:
            self.run.metrics.write_samples(step, scores["samples"])
        sets = scores.get("accuracy_by_set", {})
        values = {"heldout/accuracy": scores["accuracy"]}
        values |= {f"heldout/accuracy/{name}": x for name, x in sets.items()}
        return values | ({"heldout/hidden": scores["hidden"]} if "hidden" in scores else {})

    def _export(self, step: int) -> None:
        """Writes the weights after `step` steps where an export is due, unless it is there."""
        s, folder = self.run.settings, self.run.workdir / "exports" / str(step)
        every = s.checkpoint.export_every if self._stage == "rl" else 0
        if every and step and step % every == 0 and not on_first(folder.exists):
            model, params = self.run.model, self.state.params
            write_folder(s, self.run.workdir, folder, model, params)
            if is_first():
                print(f"[rl] weights of step {step} -> {folder}", flush=True)

    def _save(self, step: int) -> None:
        self._write_ended()
        metadata = {
            "buffer": self._buffer,
            "tokenizer": self.run.tokens.fingerprint,
            "cpu_seconds": self.cpu_seconds,
            "seconds": self.seconds,
        }
        if self._stream:
            metadata["stream"] = dict(self._stream.get_state())
        if self._replay is not None and is_first():  # before the checkpoint that needs it
            self._replay.save(self._replay_file(step))
        self._store.save(step, self.state, metadata)
        kept = {self._replay_file(each) for each in self._store.steps()}
        if self._replay is not None and is_first():
            for path in set(self._replay_file(step).parent.glob("*.npz")) - kept:
                path.unlink()

    def _replay_file(self, step: int) -> Path:
        return self.run.workdir / REPLAY / f"{step}.npz"

    def _restore(self) -> None:
        self.state, metadata = self._store.restore(self.state)
        if metadata["buffer"] != self._buffer:
            raise ValueError(
                f"buffer.folder={str(self.run.buffer)!r}: this run began with another buffer "
                f"({metadata['buffer'][:12]}…, now {self._buffer[:12]}…); use that buffer again, "
                "or start a new --workdir"
            )
        if self._stream:
            self._stream.set_state(metadata["stream"])
        if self._replay is not None:
            self._replay.load(self._replay_file(self.step))
        self.cpu_seconds = metadata["cpu_seconds"]
        self.seconds |= metadata["seconds"]
        print(f"[{self._stage}] resumed at step {self.step}", flush=True)

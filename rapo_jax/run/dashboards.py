"""Dashboards that show metrics and sample texts: TensorBoard, and Weights & Biases."""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TypedDict

from rapo_jax.io.files import read_json, write_json

if TYPE_CHECKING:
    from tensorboardX import SummaryWriter


class SampleSegment(TypedDict):
    """One segment of a sampled response, with keys of trajectories.jsonl."""

    source: str
    step: int
    text: str


class ShownSample(TypedDict):
    """A held-out question and its response as text, with keys of trajectories.jsonl."""

    question_id: str
    question: str
    answers: list[str]
    row: int
    status: str
    reward: float
    segments: list[SampleSegment]


class TensorBoard:
    """Event files in WORKDIR/tensorboard/STAGE: a resume hides all later steps of a folder."""

    def __init__(self, workdir: Path) -> None:
        self._folder = workdir / "tensorboard"
        self._writers: dict[str, SummaryWriter] = {}

    def _writer(self, stage: str, *, from_step: int | None = None) -> SummaryWriter:
        from tensorboardX import SummaryWriter

        if stage not in self._writers:
            folder = self._folder / stage
            folder.mkdir(parents=True, exist_ok=True)
            number = len(list(folder.iterdir()))  # names are of whole seconds: none is written over
            self._writers[stage] = SummaryWriter(
                str(folder), purge_step=from_step, filename_suffix=f".{number:04}"
            )
        return self._writers[stage]

    def cut_back(self, stage: str, step: int) -> None:
        """Hides what was written of `stage` from `step` on."""
        if (writer := self._writers.pop(stage, None)) is not None:
            writer.close()
        self._writer(stage, from_step=step)

    def write(self, stage: str, step: int, values: Mapping[str, float]) -> None:
        writer = self._writer(stage)
        for name, value in values.items():
            writer.add_scalar(f"{stage}/{name}", value, step)

    def write_samples(self, step: int, samples: Sequence[ShownSample]) -> None:
        for number, sample in enumerate(samples):
            text = "\n".join(
                [f"question: {sample['question']}", f"gold: {' | '.join(sample['answers'])}",
                 f"{sample['status']}, reward {sample['reward']:.3f}", _response(sample)]
            )  # fmt: skip
            block = "\n".join(f"    {line}" for line in text.splitlines())  # Markdown: verbatim
            self._writer("rl").add_text(f"heldout/{number}", block, step)

    def close(self) -> None:
        for writer in self._writers.values():
            writer.close()


class WandB:
    """A run of Weights & Biases, which a resumed run continues; its files are in WORKDIR/wandb.

    WORKDIR/wandb.json has its id, and the last step at which each metric was sent: those of steps
    that a resumed run takes again are left out, for no step can be replaced there. Without a
    network set the environment variable WANDB_MODE=offline, and `wandb sync` later.
    """

    def __init__(self, workdir: Path, project: str) -> None:
        """Raises ValueError: the package wandb is missing, or cannot begin a run."""
        try:
            import wandb
        except ImportError:
            raise ValueError(
                f"log.wandb={project!r}: the package wandb is missing; pip install "
                "'rapo_jax[wandb]' -c requirements.lock, or leave the key out"
            ) from None
        self._path = workdir / "wandb.json"
        self._sent = read_json(self._path, default={"id": uuid.uuid4().hex[:12], "last_steps": {}})
        write_json(self._path, self._sent)
        try:
            self._run = wandb.init(
                project=project,
                name=workdir.name,
                id=self._sent["id"],
                resume="allow",
                dir=str(workdir),
                config=read_json(workdir / "config.json", default={}),
            )
        except wandb.Error as error:
            raise ValueError(
                f"log.wandb={project!r}: {error}; log in with `wandb login`, or set "
                "WANDB_MODE=offline"
            ) from error
        self._table = wandb.Table
        for stage in ("sft", "imitation", "rl", "evaluate"):  # each has steps from 0 on
            self._run.define_metric(f"{stage}/*", step_metric=f"{stage}/step")

    def cut_back(self, stage: str, step: int) -> None:
        """Nothing: steps that were sent are not sent again."""

    def write(self, stage: str, step: int, values: Mapping[str, float]) -> None:
        self._send(stage, step, {f"{stage}/{name}": x for name, x in values.items()})

    def write_samples(self, step: int, samples: Sequence[ShownSample]) -> None:
        rows = [
            [s["question"], " | ".join(s["answers"]), s["status"], s["reward"], _response(s)]
            for s in samples
        ]
        columns: list[str | int] = ["question", "gold", "status", "reward", "response"]
        self._send("rl", step, {"rl/samples": self._table(columns=columns, data=rows)})

    def _send(self, stage: str, step: int, values: Mapping[str, object]) -> None:
        last = self._sent["last_steps"]
        if new := {name: x for name, x in values.items() if step > last.get(name, -1)}:
            self._run.log({f"{stage}/step": step} | new)
            last |= dict.fromkeys(new, step)
            write_json(self._path, self._sent)

    def close(self) -> None:
        self._run.finish()


def _response(sample: ShownSample) -> str:
    return "".join(segment["text"] for segment in sample["segments"])

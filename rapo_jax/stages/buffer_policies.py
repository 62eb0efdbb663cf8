"""Policies that fill a Step-Trace Buffer: checkpoints of this project, Hugging Face folders.

They are sampled on-policy by the program of the rollout, batch by batch; finished batches are kept,
so that a killed build goes on behind them, with what an unbroken one would have sampled.
"""

from __future__ import annotations

import dataclasses
import json
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax

from rapo_jax.buffer.trajectories import UNSCORED, AgentTrajectory
from rapo_jax.buffer.trajectory_file import TrajectoryFile
from rapo_jax.config import ModelSettings, Settings
from rapo_jax.config.read import read_settings
from rapo_jax.environment import Environment
from rapo_jax.model.hf_config import model_settings
from rapo_jax.tasks import Question
from rapo_jax.text.tokens import Tokens, load_tokens
from rapo_jax.train.checkpoint import Checkpoints
from rapo_jax.train.distributed import Stopped, is_first, local_part, on_first, stop_asked
from rapo_jax.train.metrics import Progress
from rapo_jax.train.policy import load_policy, newest_weights
from rapo_jax.train.run import Run, tokenizer_folder
from rapo_jax.train.sampler import Sampler
from rapo_jax.train.tapes import segments, steps_without_retrieved
from rapo_jax.train.weights import read_folder
from rapo_jax.types import Params

SHOW_EVERY_S = 10.0


class Guest(NamedTuple):
    """A policy to sample, with its own tokenizer where that is not the run's."""

    sampler: Sampler
    tokens: Tokens
    environment: Environment
    params: Params


def sample_policies(run: Run, questions: Sequence[Question]) -> list[AgentTrajectory]:
    """Trajectories of all policies in buffer.checkpoint, for the first process; all call it.

    Raises:
        ValueError: a policy cannot be loaded, or what is kept is of something else.
        Stopped: SIGTERM came; the next call goes on.
    """
    return [
        trajectory
        for checkpoint in run.settings.buffer.checkpoints
        for trajectory in _sample(run, checkpoint, questions)
    ]


def _sample(run: Run, checkpoint: str, questions: Sequence[Question]) -> list[AgentTrajectory]:
    b, batch = run.settings.buffer, run.settings.rollout.questions
    files = TrajectoryFile(
        run.buffer / "agents", f"checkpoint-{zlib.crc32(checkpoint.encode()):08x}"
    )
    wanted = [(question.id, sample) for question in questions for sample in range(b.samples)]
    done = on_first(lambda: _begin(files, _about(run, checkpoint), wanted, batch * b.samples))
    if done < len(wanted):
        if done:
            print(f"[buffer] {done} of {len(wanted)} trajectories are there; going on", flush=True)
        _go_on(run, checkpoint, questions, files, first=done // b.samples)
    return files.begin(_about(run, checkpoint)) if is_first() else []


def _begin(
    files: TrajectoryFile, about: dict[str, Any], wanted: Sequence[tuple[str, int]], batch: int
) -> int:
    """Trajectories that are there already: whole batches of them, or all."""
    kept = files.begin(about)
    found = [(trajectory.question_id, trajectory.sample) for trajectory in kept]
    if found != list(wanted[: len(found)]):
        raise ValueError(
            f"buffer: {files.path} holds trajectories of other questions; move them away from "
            "there to sample anew"
        )
    keep = len(kept)
    if keep < len(wanted):
        keep -= keep % batch
    if keep < len(kept):
        files.rewrite(kept[:keep])
    return keep


def _about(run: Run, checkpoint: str) -> dict[str, Any]:
    s, store = run.settings, Path(checkpoint) / "checkpoints"
    step = None
    if store.is_dir():
        checkpoints = Checkpoints(store, keep=1_000)
        step = checkpoints.latest()
        checkpoints.close()
    return {
        "origin": f"checkpoint:{checkpoint}",
        "step": step,
        "seed": s.seed,
        "samples": s.buffer.samples,
        "temperature": s.buffer.temperature,
        "rollout": json.loads(json.dumps(dataclasses.asdict(s.rollout))),
        "system": run.system,
    }


def _go_on(
    run: Run, checkpoint: str, questions: Sequence[Question], files: TrajectoryFile, *, first: int
) -> None:
    s = run.settings
    guest = load_guest(run, Path(checkpoint))
    n_questions, n_samples = s.rollout.questions, s.buffer.samples
    progress = Progress(
        "buffer: checkpoint", total=len(questions), done=first, every_s=SHOW_EVERY_S
    )
    for start in range(first, len(questions), n_questions):
        some = list(questions[start : start + n_questions])
        padded = (some * n_questions)[:n_questions]
        trajectory = guest.sampler.sample(
            guest.params,
            jax.random.fold_in(jax.random.key(s.seed), start),
            local_part(padded),
            group_size=n_samples,
            n_hybrid=0,
            temperature=s.buffer.temperature,
        )
        if is_first():
            files.append(
                AgentTrajectory(
                    question.id,
                    question.question,
                    steps_without_retrieved(
                        segments(guest.tokens, trajectory, q * n_samples + sample)
                    ),
                    UNSCORED,
                    f"checkpoint:{checkpoint}",
                    sample,
                )
                for q, question in enumerate(some)
                for sample in range(n_samples)
            )
        done = start + len(some)
        progress.show(done)
        if stop_asked() and done < len(questions):
            raise Stopped(f"trajectories of {done} of {len(questions)} questions are kept")
    guest.environment.take_counts()


def load_guest(run: Run, folder: Path) -> Guest:
    """The policy in `folder`: a Hugging Face folder, or a workdir or cold start of this project.

    One of another shape or tokenizer than the run's gets a program of its own.
    """
    config = _config_of(folder)
    if "model_type" in config:
        plain = dataclasses.replace(run.settings.model.lora, rank=0)
        model = model_settings(
            dataclasses.replace(run.settings.model, folder=str(folder), lora=plain)
        )
        params = read_folder(model, run.mesh, dtype=model.dtype)
        return _guest(run, model, folder, params)
    settings = _settings_of(config)
    if settings is not None and settings.model != run.settings.model:
        weights = newest_weights(settings, folder)
        params = weights.load(run.mesh, dtype=weights.model.dtype)
        cold_start = Path(settings.sft.folder or folder / "coldstart")
        return _guest(run, weights.model, tokenizer_folder(settings, cold_start), params)
    params = run.sampler.load(load_policy(run, folder))
    return Guest(run.sampler, run.tokens, run.environment, params)


def _guest(run: Run, model: ModelSettings, tokenizer: Path, params: Params) -> Guest:
    tokens = load_tokens(tokenizer, vocab_size=model.vocab, user_tools=run.tokens.user_tools)
    if len(tokens.bytes_V) > model.vocab:
        raise ValueError(
            f"buffer.checkpoint: the tokenizer in {tokenizer} has ids up to "
            f"{len(tokens.bytes_V) - 1}, and the model a vocabulary of {model.vocab}; use its own"
        )
    r = run.settings.rollout
    environment = Environment(
        tokens,
        run.tools,
        observation_tokens=r.observation_tokens,
        retrieved_tokens=r.retrieved_tokens,
    )
    sampler = Sampler(
        model,
        r,
        tokens,
        environment,
        run.mesh,
        system=run.system,
        embed=run.encoder.embed,
        query_E=run.encoder.query_E,
    )
    return Guest(sampler, tokens, environment, sampler.load(params))


def _config_of(folder: Path) -> dict[str, Any]:
    """FOLDER/config.json, of a Hugging Face model or of a run; nothing where there is none."""
    path = folder / "config.json"
    try:
        found = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    except ValueError as error:
        raise ValueError(f"buffer.checkpoint: {path} is no JSON ({error})") from None
    return found if isinstance(found, dict) else {}


def _settings_of(config: dict[str, Any]) -> Settings | None:
    """Settings of another run; None where they are not to be read, as of an older version."""
    known = {key: value for key, value in config.items() if key != "commit"}
    try:
        return read_settings(known | {"stages": ["report"]}) if config else None
    except ValueError:
        return None

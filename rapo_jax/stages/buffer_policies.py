"""Policies that fill a Step-Trace Buffer: checkpoints of this project, Hugging Face folders.

They are sampled without retrieval by the rollout program, batch by batch. Finished batches are
written at once: a killed build resumes after them and samples what an unbroken one would have.
"""

from __future__ import annotations

import dataclasses
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import jax

from rapo_jax.buffer.trajectories import UNSCORED, AgentTrajectory
from rapo_jax.buffer.trajectory_file import TrajectoryFile
from rapo_jax.config import KEYS, ModelSettings, Settings
from rapo_jax.config.read import read_settings
from rapo_jax.config.sources import NOTES
from rapo_jax.distributed import Stopped, is_first, on_first, stop_asked
from rapo_jax.environment import Environment
from rapo_jax.io.files import Json, read_object
from rapo_jax.model.hf_config import model_settings
from rapo_jax.run.folders import tokenizer_folder
from rapo_jax.run.keys import StageKey, named_key
from rapo_jax.run.metrics import Progress
from rapo_jax.run.policy import load_policy, newest_weights
from rapo_jax.run.run import Run
from rapo_jax.run.weights import newest_step, read_folder
from rapo_jax.sampling.batches import padded_batches
from rapo_jax.sampling.sampler import Sampler
from rapo_jax.sampling.tapes import response_segments, steps_without_retrieved
from rapo_jax.tasks import Question
from rapo_jax.tasks.fitting import fitting_questions
from rapo_jax.text.chat import known_arguments
from rapo_jax.text.protocol import Segment
from rapo_jax.text.tokens import Tokens, load_tokens
from rapo_jax.types import Params


class LoadedPolicy(NamedTuple):
    """A policy that fills the buffer: sampler, tokenizer, environment and sampling weights."""

    sampler: Sampler
    tokens: Tokens
    environment: Environment
    params: Params


class PolicySamples(NamedTuple):
    """Trajectories of policies, and how many questions each left out as too long, if any."""

    trajectories: list[AgentTrajectory]
    too_long: dict[str, int]


def sample_policies(run: Run, questions: Sequence[Question]) -> PolicySamples:
    """Samples all policies in buffer.checkpoint, for the first process; all call it.

    Raises:
        ValueError: a policy cannot be loaded, trajectories were kept under other settings, or a
            question is too long for a policy's tokenizer and `task.too_long` is 'fail'.
        Stopped: a signal asked for it; the next call resumes.
    """
    samples = PolicySamples([], {})
    for checkpoint in run.settings.buffer.checkpoints:
        fitting = _fitting(run, checkpoint, questions)
        if len(fitting) < len(questions):
            samples.too_long[checkpoint] = len(questions) - len(fitting)
        samples.trajectories.extend(_sample(run, checkpoint, fitting))
    return samples


def _fitting(run: Run, checkpoint: str, questions: Sequence[Question]) -> Sequence[Question]:
    """The questions whose prompts fit also by the policy's own tokenizer."""
    tokens = policy_tokens(run, Path(checkpoint))
    if tokens is run.tokens:
        return questions
    split = run.settings.buffer.split
    fitting = fitting_questions(
        {split: questions},
        lambda question: len(tokens.prompt_ids(run.system, question.question)),
        limit=run.settings.rollout.prompt_tokens,
        skip=run.settings.task.too_long == "skip",
        whose=f"buffer.checkpoint={checkpoint!r}",
    )
    return list(fitting[split])


def _sample(run: Run, checkpoint: str, questions: Sequence[Question]) -> list[AgentTrajectory]:
    b, batch = run.settings.buffer, run.settings.rollout.questions
    files = TrajectoryFile(
        run.buffer / "agents", f"checkpoint-{zlib.crc32(checkpoint.encode()):08x}"
    )
    settings = _settings_to_keep(run, checkpoint)
    wanted = [(question.id, sample) for question in questions for sample in range(b.samples)]
    done = on_first(lambda: _begin(files, settings, wanted, batch * b.samples))
    if done < len(wanted):
        if done:
            print(f"[buffer] resuming: {done} of {len(wanted)} trajectories are there", flush=True)
        _sample_rest(run, checkpoint, questions, files, first=done // b.samples)
    return files.begin(settings) if is_first() else []


def _begin(
    files: TrajectoryFile,
    settings: Mapping[str, object],
    wanted: Sequence[tuple[str, int]],
    batch: int,
) -> int:
    """Trajectories that are there already: whole batches of them, or all."""
    kept = files.begin(settings)
    there = [(each.question_id, each.sample) for each in kept]
    if there != list(wanted[: len(there)]):
        raise ValueError(
            f"buffer: {files.path} holds trajectories of other questions; move them away from "
            "there to sample again"
        )
    keep = len(kept)
    if keep < len(wanted):
        keep -= keep % batch
    if keep < len(kept):
        files.rewrite(kept[:keep])
    return keep


def _settings_to_keep(run: Run, checkpoint: str) -> dict[str, object]:
    """The settings that a checkpoint's trajectories depend on, as JSON."""
    s = run.settings
    rollout = {f"rollout.{key}": value for key, value in dataclasses.asdict(s.rollout).items()}
    return {
        "origin": f"checkpoint:{checkpoint}",
        "step": newest_step(Path(checkpoint)),
        "seed": s.seed,
        "samples": s.buffer.samples,
        "temperature": s.buffer.temperature,
        **{name: value for name, value in rollout.items() if not KEYS[name].per_call},
        "system": run.system,
        "template_arguments": dict(s.prompt.template_arguments),
    }


def _sample_rest(
    run: Run, checkpoint: str, questions: Sequence[Question], files: TrajectoryFile, *, first: int
) -> None:
    s = run.settings
    policy = load_buffer_policy(run, Path(checkpoint))
    n_samples = s.buffer.samples
    progress = Progress("buffer: checkpoint", total=len(questions), done=first)
    key = named_key(s, StageKey.BUFFER, checkpoint)
    for batch in padded_batches(questions, size=s.rollout.questions, first=first):
        trajectory = policy.sampler.sample(
            policy.params,
            jax.random.fold_in(key, batch.start),
            batch.local_items,
            group_size=n_samples,
            temperature=s.buffer.temperature,
        )
        if is_first():
            files.append(
                unscored(question, sample, row, f"checkpoint:{checkpoint}")
                for q, question in enumerate(batch.items)
                for sample in range(n_samples)
                for row in [response_segments(policy.tokens, trajectory, q * n_samples + sample)]
            )
        done = batch.start + len(batch.items)
        progress.show(done)
        if stop_asked() and done < len(questions):
            raise Stopped(f"trajectories of {done} of {len(questions)} questions are kept")
    policy.environment.take_counts()


def unscored(
    question: Question, sample: int, row: Sequence[Segment], origin: str
) -> AgentTrajectory:
    """The trajectory of a sampled row, its retrieved traces left out."""
    steps = steps_without_retrieved(row)
    return AgentTrajectory(question.id, question.question, steps, UNSCORED, origin, sample)


class _Place(NamedTuple):
    """What a policy's folder holds: of a run the settings, None for a Hugging Face folder."""

    settings: Settings | None
    tokenizer: Path | None
    """None where the run's own program and tokenizer sample the policy."""


def _place_of(run: Run, folder: Path) -> _Place:
    config = _config_of(folder)
    if "model_type" in config:
        return _Place(None, folder)
    settings = _settings_of(config) if config else _settings_of_cold_start(run, folder)
    if settings is None or not _needs_program(run, settings, folder):
        return _Place(settings, None)
    return _Place(settings, tokenizer_folder(settings, folder))


def policy_tokens(run: Run, folder: Path) -> Tokens:
    """The tokenizer of the policy in `folder`; no weights are read."""
    tokenizer = _place_of(run, folder).tokenizer
    return run.tokens if tokenizer is None else _tokens_of(run, tokenizer)


def load_buffer_policy(run: Run, folder: Path) -> LoadedPolicy:
    """The policy in `folder`: a Hugging Face folder, or a workdir or cold start of this project.

    One of another shape or tokenizer than the run's gets its own program.
    """
    settings, tokenizer = _place_of(run, folder)
    if tokenizer is None:
        params = run.sampler.load(load_policy(run, folder))
        return LoadedPolicy(run.sampler, run.tokens, run.environment, params)
    if settings is None:
        plain = dataclasses.replace(run.settings.model.lora, rank=0)
        model = model_settings(
            dataclasses.replace(run.settings.model, folder=str(folder), lora=plain)
        )
        params = read_folder(model, run.mesh, dtype=model.dtype)
        return _loaded_policy(run, model, tokenizer, params)
    weights = newest_weights(settings, folder)
    params = weights.load(run.mesh, dtype=weights.model.dtype)
    return _loaded_policy(run, weights.model, tokenizer, params)


def _tokens_of(run: Run, tokenizer: Path, *, vocab_size: int = 0) -> Tokens:
    tokens = load_tokens(tokenizer, vocab_size=vocab_size, user_tools=run.tokens.user_tools)
    template = tokens.tokenizer.get_chat_template()
    switches = known_arguments(run.settings.prompt.template_arguments, template)
    return dataclasses.replace(tokens, template_arguments=switches)


def _loaded_policy(run: Run, model: ModelSettings, tokenizer: Path, params: Params) -> LoadedPolicy:
    tokens = _tokens_of(run, tokenizer, vocab_size=model.vocab)
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
        query_shape=run.encoder.query_shape,
    )
    return LoadedPolicy(sampler, tokens, environment, sampler.load(params))


def _config_of(folder: Path) -> dict[str, Json]:
    """FOLDER/config.json of a Hugging Face model or of a run; empty without one."""
    path = folder / "config.json"
    try:
        return read_object(path) if path.is_file() else {}
    except ValueError as error:
        raise ValueError(f"buffer.checkpoint: {error}") from None


def _needs_program(run: Run, settings: Settings, folder: Path) -> bool:
    """Whether the policy of these settings has another shape or another tokenizer than the run."""
    if settings.model != run.settings.model:
        return True
    tokens = load_tokens(tokenizer_folder(settings, folder), user_tools=run.tokens.user_tools)
    return tokens.fingerprint != run.tokens.fingerprint


def _settings_of_cold_start(run: Run, folder: Path) -> Settings | None:
    """The run's settings with the cold start in `folder`; None where it has no tokenizer."""
    s, made = run.settings, folder / "tokenizer"
    if not made.is_dir():
        return None
    return dataclasses.replace(
        s,
        sft=dataclasses.replace(s.sft, folder=str(folder)),
        tokenizer=dataclasses.replace(s.tokenizer, folder=str(made)),
    )


def _settings_of(config: dict[str, Json]) -> Settings | None:
    """Settings of another run; None where they cannot be read, as those of an older version."""
    known = {key: value for key, value in config.items() if key not in NOTES}
    try:
        return read_settings(known | {"stages": ["report"]})
    except ValueError:
        return None

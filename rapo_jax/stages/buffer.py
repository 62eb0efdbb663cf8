"""The buffer stage: builds the Step-Trace Buffer from off-policy trajectories."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence

import numpy as np

from rapo_jax.buffer.buffer import Manifest, StepTraceBuffer
from rapo_jax.buffer.sources import Imported
from rapo_jax.buffer.trajectories import StepTrace, best_of, filter_counts, split_all
from rapo_jax.distributed import Stopped, make_once, on_first
from rapo_jax.io import watchdog
from rapo_jax.io.files import write_json, write_text
from rapo_jax.io.signals import stop_requested
from rapo_jax.run.metrics import Progress
from rapo_jax.run.run import Run
from rapo_jax.search.ngram import NgramEncoder
from rapo_jax.stages.buffer_sources import Sampling, import_files, sample_agents
from rapo_jax.tasks import check_metric
from rapo_jax.train.buffer import (
    ENCODE_ROWS,
    TextEncoder,
    each_text_once,
    filled_by,
    key_encoder,
    load_buffer,
    splitting,
)

KEY_ORDERS = (1, 2)
"""n-grams of the built-in encoder of keys."""


def build_buffer(run: Run) -> Manifest:
    """Builds `BUFFER/traces`, its encoder and `trajectories.jsonl`, unless they are finished.

    Of several runs with one buffer, one builds it and the others wait. Returns the manifest.
    """
    made: list[Manifest] = []
    make_once(run.buffer, lambda: made.append(_sample_and_build(run)), name="buffer")
    return made[0] if made else load_buffer(run).manifest


def _sample_and_build(run: Run) -> Manifest:
    started = time.perf_counter()
    check_metric(run.settings.task.metric)
    imported = import_files(run)
    sample_others = sample_agents(run)
    return on_first(lambda: _build(run, imported, sample_others(), started), at_length=True)


def _build(run: Run, imported: Imported | None, sampled: Sampling, started: float) -> Manifest:
    folder, s = run.buffer, run.settings
    trajectories = sampled.trajectories + (imported.trajectories if imported else [])
    how = splitting(s)
    least = s.buffer.least_reward
    kept = best_of(trajectories, s.buffer.keep, least=least)
    single: list[StepTrace] = []
    if imported:
        single = imported.usable_step_traces(unit=how.unit, include_answers=how.include_answers)
        single = [step_trace for step_trace in single if step_trace.reward >= least]
    step_traces = split_all(kept, how) + single
    if not step_traces and (trajectories or imported):
        raise ValueError(
            f"buffer.least_reward={least:g}: none of {len(trajectories)} trajectories has a step "
            "and that reward; lower it, or sample more or a better agent"
        )
    (folder / "encoder").mkdir(parents=True, exist_ok=True)
    if run.encoder.tokenize is None:
        keys = [step_trace.key for step_trace in step_traces]
        fitted = NgramEncoder.fit(keys, width=s.retrieval.width, orders=KEY_ORDERS)
        fitted.save(folder / "encoder")
    encode, identity = key_encoder(run)
    buffer = StepTraceBuffer.build(
        step_traces,
        how,
        encode=each_text_once(_with_progress(encode)),
        encoder_identity=identity,
        tokenizer_fingerprint=run.tokens.fingerprint,
        count_tokens=lambda text: len(run.tokens.encode_protocol(text)),
        info={
            "filled_by": filled_by(s),
            **filter_counts(trajectories, kept),
            **(imported.info() if imported else {}),
            **sampled.info,
        },
    )
    buffer.save(folder / "traces")
    # one that says nothing teaches nothing
    spoken = [each for each in kept if any(map(str.strip, each.steps))]
    lines = "".join(f"{json.dumps(each._asdict())}\n" for each in spoken)
    write_text(folder / "trajectories.jsonl", lines)
    seconds = time.perf_counter() - started
    done = {"seconds": seconds, "identity": buffer.identity}
    write_json(folder / "done.json", done)
    print(f"[buffer] {_summary(buffer, single)}; {seconds:.0f} s", flush=True)
    return buffer.manifest


def _summary(buffer: StepTraceBuffer, single: Sequence[StepTrace]) -> str:
    m = buffer.manifest
    parts = []
    if m["trajectories_sampled"]:
        parts.append(
            f"{len(buffer.step_traces) - len(single)} step traces of {m['trajectories_kept']} "
            f"trajectories kept of {m['trajectories_sampled']}; mean reward "
            f"{m['mean_reward_sampled']:.3f} -> {m['mean_reward_kept']:.3f}"
        )
    if single:
        reward = np.mean([step_trace.reward for step_trace in single])
        parts.append(f"{len(single)} single step traces of files; mean reward {reward:.3f}")
    return "; ".join(parts)


def _with_progress(encode: TextEncoder) -> TextEncoder:
    """The same encoder, which prints its progress and stops if a signal asks for it."""

    def encode_all(texts: Sequence[str]) -> np.ndarray:
        progress = Progress("buffer: distinct keys", total=len(texts), done=0)
        keys = []
        for start in range(0, len(texts), ENCODE_ROWS):
            if stop_requested():
                raise Stopped(
                    f"the {start} keys made so far are not kept; the next start makes all"
                )
            keys.append(encode(texts[start : start + ENCODE_ROWS]))
            watchdog.beat()
            progress.show(start + len(keys[-1]))
        return np.concatenate(keys)

    return encode_all

"""The stages of a run, one function each, and the numbers that they add to result.json."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from rapo_jax.config import Settings
from rapo_jax.config.sources import STORED
from rapo_jax.distributed import Stopped, is_first
from rapo_jax.io.files import Json, read_json, write_json
from rapo_jax.model.describe import describe
from rapo_jax.model.sharding import row_shards
from rapo_jax.plan.memory import check_memory, device_memory
from rapo_jax.run.folders import COLD_START
from rapo_jax.run.policy import load_policy, policy_shapes
from rapo_jax.run.run import Run, open_run
from rapo_jax.run.weights import newest_step
from rapo_jax.sampling.batches import even_size
from rapo_jax.stages.buffer import build_buffer
from rapo_jax.stages.export import export_weights
from rapo_jax.stages.gates import check_cold_start
from rapo_jax.stages.score import score_file
from rapo_jax.stages.search_index import index_corpus
from rapo_jax.stages.suites import evaluate_suites, open_suites
from rapo_jax.suites.catalogue import Suite
from rapo_jax.tasks.stream import load_questions
from rapo_jax.train.evaluate import evaluate, spread
from rapo_jax.train.imitation import train_imitation
from rapo_jax.train.rl import train_rl
from rapo_jax.train.sft import train_cold_start

BEGUN = ("metrics.jsonl", "done.json", "checkpoints", "suites")
"""A workdir with one of them holds results of its config."""


class Job:
    """An open run, the suites to evaluate, and the contents of result.json."""

    def __init__(self, run: Run, suites: Sequence[Suite] = ()) -> None:
        self.run, self.suites = run, suites
        fresh = {"method": run.settings.method, "seed": run.settings.seed}
        fresh |= {"counts": {}, "seconds": {}, "cpu_seconds": {}}
        self.result: dict[str, Json] = read_json(run.workdir / "result.json", default=fresh)
        if run.too_long:
            self.result["counts"]["too_long"] = dict(run.too_long)

    def check_memory(self, stages: Sequence[str]) -> None:
        """Refuses, before anything is compiled, stages that cannot fit; see `plan.memory`."""
        run, s = self.run, self.run.settings
        asked = [len(suite.questions) for suite in self.suites]
        if "evaluate" in stages or ("rl" in stages and s.evaluate.every):
            asked.append(len(spread(load_questions(run.questions["eval"]), s.evaluate.limit)))
        shards, most = row_shards(run.mesh), s.evaluate.rows
        check_memory(
            s,
            run.model,
            run.mesh,
            training="rl" in stages,
            evaluation_rows=max((even_size(n, most=most, shards=shards) for n in asked), default=0),
            available=device_memory(run.mesh),
        )

    @contextmanager
    def timed(self, name: str) -> Iterator[None]:
        """Adds the wall and CPU seconds of a stage to the result, and writes it."""
        wall, cpu, spent = time.perf_counter(), time.process_time(), self.result
        yield
        spent["seconds"][name] = spent["seconds"].get(name, 0) + time.perf_counter() - wall
        spent["cpu_seconds"][name] = spent["cpu_seconds"].get(name, 0) + time.process_time() - cpu
        if is_first():
            write_json(self.run.workdir / "result.json", self.result)


@contextmanager
def open_job(
    settings: Settings, workdir: Path, stages: Sequence[str], *, fresh: bool = False
) -> Iterator[Job]:
    """Opens the run of `stages`, and prints what of the model each device will hold.

    For a `fresh` workdir see `released`.
    """
    with released(workdir, fresh=fresh):
        suites = open_suites(settings, workdir)
        run = open_run(settings, workdir)
        try:
            table, notes = describe(run.mesh, run.model, policy_shapes(run.model))
            job = Job(run, suites)
            job.check_memory(stages)
            if is_first():
                (workdir / "layout.txt").write_text("\n".join([*table, *notes]) + "\n")
            for note in notes:
                print(f"[mesh] {note}", flush=True)
            yield job
        finally:
            run.close()


@contextmanager
def released(workdir: Path, *, fresh: bool) -> Iterator[None]:
    """Lets another config take a `fresh` workdir if the block fails before anything is computed.

    It then loses its config.json and a tokenizer that was made for it. Trajectories for a buffer
    stay: they are taken again only by the settings that made them.
    """
    tokenizer = workdir / COLD_START / "tokenizer"
    had_tokenizer = tokenizer.exists()
    try:
        yield
    except Stopped:
        raise
    except BaseException:
        if fresh and is_first() and not any((workdir / name).exists() for name in BEGUN):
            (workdir / STORED).unlink()
            if not had_tokenizer:
                shutil.rmtree(tokenizer, ignore_errors=True)
        raise


def _buffer(job: Job) -> None:
    manifest = build_buffer(job.run)
    for name in ("traces", "trajectories_kept"):
        job.result["counts"][name] = manifest[name]


def _rl(job: Job) -> None:
    if job.run.task.scripted:  # without, settings are refused where a gate is set
        job.result["cold_start"] = check_cold_start(job.run)
    train = train_rl if job.run.settings.of_method.samples else train_imitation
    training = train(job.run)
    job.result["seconds"] |= {k: v for k, v in training.seconds.items() if k != "step"}
    job.result["cpu_seconds"]["rl_steps"] = training.cpu_seconds
    job.result["counts"]["rl_steps"] = job.run.settings.rl.steps
    job.result["counts"]["compiled_rollouts"] = job.run.sampler.compiled


def _evaluate(job: Job) -> None:
    run = job.run
    questions = spread(load_questions(run.questions["eval"]), run.settings.evaluate.limit)
    compared = [("before", run.cold_start), ("after", run.workdir)]
    if run.model.folder and newest_step(run.workdir) is None:
        compared.pop()  # nothing was trained: the weights of the folder alone
    began = "before training" if newest_step(run.cold_start) is None else "after the cold start"
    job.result["start"] = began
    run.metrics.cut_back("evaluate", 0)  # of an evaluation that a kill cut short
    for when, folder in compared:
        scores = evaluate(run, load_policy(run, folder), questions)
        job.result |= {f"{k}_{when}": v for k, v in scores.items() if k != "questions"}
        job.result["questions"] = scores["questions"]
        if when == "after":
            job.result["steps_after"] = newest_step(folder)
        metrics = {"evaluate/accuracy": scores["accuracy"], "evaluate/reward": scores["reward"]}
        metrics |= {f"evaluate/accuracy/{k}": v for k, v in scores["accuracy_by_kind"].items()}
        run.metrics.write("evaluate", 0 if when == "before" else run.settings.rl.steps, metrics)


JOB_STAGES: dict[str, Callable[[Job], None]] = {
    "sft": lambda job: train_cold_start(job.run),
    "buffer": _buffer,
    "rl": _rl,
    "evaluate": _evaluate,
    "suites": lambda job: evaluate_suites(job.run, job.suites, job.result),
}
"""Those that train or evaluate, on an open run."""

READER_STAGES: dict[str, Callable[[Settings, Path], None]] = {
    "score": score_file,
    "export": export_weights,
    "search_index": index_corpus,
}
"""Those that need no open run."""

"""Evaluation on suites: the newest weights answer without retrieval, answers are scored.

All processes sample together, the first one writes and scores. Written rows are not sampled again;
rows are in the same batches however many of them are written.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from rapo_jax.config import Settings
from rapo_jax.distributed import (
    Stopped,
    allgather_json,
    is_first,
    local_part,
    on_first,
    stop_asked,
)
from rapo_jax.io.files import Json, write_text
from rapo_jax.method.tape import response_mask
from rapo_jax.model.sharding import row_shards
from rapo_jax.run.keys import StageKey, named_key
from rapo_jax.run.metrics import Progress
from rapo_jax.run.policy import load_policy, newest_folder
from rapo_jax.run.run import Run
from rapo_jax.sampling.batches import even_size, padded_batches
from rapo_jax.sampling.condensing import report_condensing
from rapo_jax.sampling.tapes import response_text
from rapo_jax.scoring.maths import check_math_verify
from rapo_jax.suites.catalogue import Suite, read_suites
from rapo_jax.suites.paper import backbone
from rapo_jax.suites.predictions import TOO_LONG, Predictions, Sampled, join_parts, prediction
from rapo_jax.suites.scores import open_judge, score_all
from rapo_jax.suites.summary import Summary, headline, summarise
from rapo_jax.suites.table import table
from rapo_jax.tasks.schema import Question
from rapo_jax.text.protocols import AnswerRule
from rapo_jax.train.evaluate import spread
from rapo_jax.types import Params, Status

FOLDER = "suites"
"""Of a workdir: predictions and the table."""

Policy = Callable[[Sequence[Question], int], list[Sampled]]
"""(questions of this process's rows, number of the batch's first row) -> a sample of each."""


def open_suites(settings: Settings, workdir: Path) -> list[Suite]:
    """Reads the suites to evaluate, at most evaluate.limit questions of each, before any compile.

    Raises:
        ValueError: a suite cannot be read, its scorer is missing, or nothing is to be trained and
            there are no weights.
    """
    e, d = settings.evaluate, settings.task.dataset
    if "evaluate" not in settings.stages or not e.suites:
        return []
    suites = read_suites(
        e.suites,
        manual_dir=e.manual_dir or d.manual_dir,
        malformed=d.malformed,
        metric=settings.task.metric,
    )
    if e.scoring == "strict" and any("math" in suite.metrics for suite in suites):
        check_math_verify()
    if settings.suites_alone:
        newest_folder(settings, workdir)
    if e.judge.url:
        on_first(
            lambda: open_judge(e.judge, rule=e.scoring, folder=workdir / FOLDER).close()
        )  # its key and cache are there
    for suite in suites:
        several = sum(len(question.answers) > 1 for question in suite.questions)
        counted = f"{suite.name}: {several} of {len(suite.questions)} questions have several "
        counted += "answers, and evaluate.scoring='official' counts the last one alone"
        notes = [counted] if several and e.scoring == "official" else []
        for note in (*suite.notes, *notes):
            print(f"[data] {note}", flush=True)
    return [suite.only(spread(range(len(suite.questions)), e.limit)) for suite in suites]


def evaluate_suites(run: Run, suites: Sequence[Suite], result: dict[str, Json]) -> None:
    """Samples and scores every suite; writes the summaries to `result['suites']` and a table.

    Summaries of other weights are dropped from `result`.

    Raises:
        ValueError: a suite's files are of other questions or weights, or the judge fails.
        Stopped: a signal asked for it; the next call resumes.
    """
    folder, weights = newest_folder(run.settings, run.workdir)
    loaded: list[Params] = []

    def policy(suite: Suite) -> Policy:
        if not loaded:
            loaded.append(run.sampler.load(load_policy(run, folder)))
        return _device_policy(run, loaded[0], suite.name)

    s = run.settings
    evaluated = s.method if s.protocol == "rapo" else s.protocol
    shape = {key: getattr(run.model, key) for key in ("width", "layers", "ffn")}
    for suite in suites:
        summary = evaluate_suite(
            run.settings,
            run.workdir,
            suite,
            weights=weights,
            policy=policy,
            fits=_fits(run),
            user_tools=run.tokens.user_tools,
            answers=run.tokens.protocol.answers,
            shards=row_shards(run.mesh),
        )
        summary |= {"backbone": backbone(**shape), "method": evaluated}
        kept = result.get("suites", {})
        kept = {name: other for name, other in kept.items() if other["weights"] == weights}
        result["suites"] = kept | {suite.name: summary}
        if is_first():
            write_text(run.workdir / FOLDER / "table.md", table(result["suites"]))
            print(f"[suites] {headline(suite.name, summary)}", flush=True)
    report_condensing(run.environment.take_counts())


def evaluate_suite(
    settings: Settings,
    workdir: Path,
    suite: Suite,
    *,
    weights: str,
    policy: Callable[[Suite], Policy],
    fits: Callable[[Question], bool],
    user_tools: tuple[str, ...],
    shards: int,
    answers: AnswerRule = "tagged",
) -> Summary:
    """Samples the rows of a suite that are not written yet, scores all and returns the summary.

    `policy` is called only if there are rows to sample. A question whose prompt does not fit
    (`fits`) is scored without a sample. `user_tools` are the tags of user-made tools, `shards` the
    devices that rows are spread over.
    """
    e = settings.evaluate
    fitting_Q = map(fits, suite.questions)
    asked = zip(suite.questions, suite.metrics, fitting_Q, strict=True)
    rows = [(q, metric, k, fitting) for q, metric, fitting in asked for k in range(e.samples)]
    to_sample = [(q, metric, k) for q, metric, k, fitting in rows if fitting]
    wanted = [(q.id, k) for q, _, k in to_sample]
    identity = {
        "suite": suite.source,
        "questions": suite.digest(),
        "weights": weights,
        "samples": e.samples,
        "temperature": e.temperature,
    }
    digests = allgather_json(identity)
    if any(each != digests[0] for each in digests):
        raise ValueError(
            f"evaluate.suites={suite.name!r}: the processes read different files or weights; give "
            "all of them the same"
        )
    files = Predictions(workdir / FOLDER, suite.name, wanted)
    size = even_size(len(wanted), most=e.rows, shards=shards)
    done = on_first(lambda: files.begin(identity, batch=size))
    if done < len(wanted):
        _predict(policy(suite), to_sample, files, done=done, size=size)

    def score() -> Summary:
        sampled = iter(files.sampled())
        rows_to_score = [
            next(sampled) if fitting else prediction(q, metric, TOO_LONG, sample=k)
            for q, metric, k, fitting in rows
        ]
        scored = score_all(
            rows_to_score,
            rule=e.scoring,
            user_tools=user_tools,
            judge=e.judge,
            folder=workdir / FOLDER,
            answers=answers,
        )
        files.finish(scored)
        return summarise(scored, samples=e.samples)

    return {
        **{key: identity[key] for key in ("suite", "weights", "temperature")},
        "metric": suite.metric,
        "scoring": e.scoring,
        "judge": e.judge.model if e.judge.url else "",
        **on_first(score, at_length=True),
    }


def _predict(
    policy: Policy,
    to_sample: Sequence[tuple[Question, str, int]],
    files: Predictions,
    *,
    done: int,
    size: int,
) -> None:
    name = f"suites: {files.name}"
    progress = Progress(name, total=len(to_sample), done=done)
    if done:
        print(f"[{name}] resuming: {done} of {len(to_sample)} samples are there", flush=True)
    for batch in padded_batches(to_sample, size=size, first=done):
        sampled = policy([q for q, _, _ in batch.local_items], batch.start)
        part = [
            prediction(q, metric, each, sample=k)
            for (_, (q, metric, k)), each in zip(batch.local_rows, sampled, strict=False)
        ]
        rows = join_parts(allgather_json(part), [(q.id, k) for q, _, k in batch.items])
        if is_first():
            files.append(rows)
        answered = sum(row["ending"] == Status.ANSWERED.name for row in rows) / len(rows)
        done = batch.start + len(batch.items)
        progress.show(done, answer_tags=answered)
        if stop_asked() and done < len(to_sample):
            raise Stopped(f"{done} of {len(to_sample)} samples of {files.name} saved")


def _device_policy(run: Run, params: Params, suite: str) -> Policy:
    """Samples from `params`, which the sampler loaded; every suite has its own random keys."""
    key = named_key(run.settings, StageKey.SUITES, suite)

    def sample(questions: Sequence[Question], start: int) -> list[Sampled]:
        trajectory = run.sampler.sample(
            params,
            key,
            questions,
            temperature=run.settings.evaluate.temperature,
            first_row=start,
        )
        response_BT = response_mask(trajectory.source_BT)
        return [
            Sampled(
                response_text(run.tokens, trajectory, b),
                Status(int(trajectory.status_B[b])).name,
                int(response_BT[b].sum()),
                calls,
            )
            for b, calls in zip(
                local_part(range(len(trajectory.status_B))), run.environment.calls, strict=True
            )
        ]

    return sample


def _fits(run: Run) -> Callable[[Question], bool]:
    limit = run.settings.rollout.prompt_tokens
    return lambda q: len(run.tokens.prompt_ids(run.system, q.question)) <= limit

"""Evaluation on suites: sampled without retrieval by the newest weights, scored, told in a table.

All processes sample together, the first one writes and scores. What is written is not sampled
again: rows go in the same batches whichever of them are there.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax

from rapo_jax.config import Settings
from rapo_jax.scoring.maths import check_math_verify
from rapo_jax.suites.catalogue import Suite, read_suites
from rapo_jax.suites.paper import backbone
from rapo_jax.suites.predictions import TOO_LONG, Predictions, Sampled, join_parts, prediction
from rapo_jax.suites.scores import open_judge, score_all
from rapo_jax.suites.summary import headline, summarise
from rapo_jax.suites.table import table
from rapo_jax.tasks.schema import Question
from rapo_jax.train.checkpoint import Checkpoints
from rapo_jax.train.distributed import (
    Stopped,
    allgather_json,
    is_first,
    local_part,
    on_first,
    stop_asked,
)
from rapo_jax.train.evaluate import spread
from rapo_jax.train.metrics import Progress
from rapo_jax.train.policy import load_policy
from rapo_jax.train.run import Run, stage_key
from rapo_jax.train.tapes import segments, text_without_retrieved
from rapo_jax.types import Params, Source, Status

FOLDER = "suites"
"""Of a workdir: predictions and the table."""
STAGE = 200
"""Stage number of the keys that samples are drawn with."""
SHOW_EVERY_S = 10.0

Policy = Callable[[Sequence[Question], int], list[Sampled]]
"""(questions of this process's rows, number of the batch's first row) -> what came of each."""


def open_suites(settings: Settings, workdir: Path) -> list[Suite]:
    """The suites to evaluate, at most evaluate.limit questions of each, before any compile.

    Raises:
        ValueError: a suite cannot be read, what scores it is missing, or nothing is to be trained
            and there are no weights.
    """
    e, d = settings.evaluate, settings.task.dataset
    if "evaluate" not in settings.stages or not e.suites:
        return []
    found = read_suites(
        e.suites,
        manual_dir=e.manual_dir or d.manual_dir,
        malformed=d.malformed,
        metric=settings.task.metric,
    )
    if e.scoring == "strict" and any("math" in suite.metrics for suite in found):
        check_math_verify()
    if settings.suites_alone:
        newest_folder(settings, workdir)
    if e.judge.url:
        on_first(
            lambda: open_judge(e.judge, rule=e.scoring, folder=workdir / FOLDER).close()
        )  # its key and cache are there
    for suite in found:
        for note in suite.notes:
            print(f"[data] {note}", flush=True)
    return [suite.only(spread(range(len(suite.questions)), e.limit)) for suite in found]


def newest_folder(settings: Settings, workdir: Path) -> tuple[Path, str]:
    """What `load_policy` takes for the newest weights there are, and what to call them."""
    cold_start = Path(settings.sft.folder or workdir / "coldstart")
    for folder, name in ((workdir, "checkpoint"), (cold_start, "cold start")):
        if (folder / "checkpoints").is_dir():
            store = Checkpoints(folder / "checkpoints", keep=1_000)
            step = store.latest()
            store.close()
            if step is not None:
                return folder, f"{name} of step {step}"
    if not settings.model.folder:
        raise ValueError(
            f"evaluate.suites={settings.evaluate.suites!r}: {str(workdir)!r} has no checkpoint to "
            "evaluate; train there first, or name a Hugging Face folder in model.folder"
        )
    return cold_start, settings.model.folder


def evaluate_suites(run: Run, suites: Sequence[Suite], result: dict[str, Any]) -> None:
    """Predicts and scores every suite; `result['suites']` gets its summary, and a table is written.

    Summaries of other weights are dropped from there.

    Raises:
        ValueError: a suite's files are of something else, or the judge cannot be asked.
        Stopped: SIGTERM came; the next call goes on.
    """
    folder, weights = newest_folder(run.settings, run.workdir)
    loaded: list[Params] = []

    def policy(suite: Suite) -> Policy:
        if not loaded:
            loaded.append(run.sampler.load(load_policy(run, folder)))
        return _device_policy(run, loaded[0], suite.name)

    def tell(name: str, found: dict[str, Any]) -> None:
        kept = result.get("suites", {})
        kept = {other: x for other, x in kept.items() if x["weights"] == weights}
        result["suites"] = kept | {name: found}
        if is_first():
            (run.workdir / FOLDER / "table.md").write_text(table(result["suites"]))
            print(f"[suites] {headline(name, found)}", flush=True)

    shape = {key: getattr(run.model, key) for key in ("width", "layers", "ffn")}
    for suite in suites:
        found = evaluate_suite(
            run.settings,
            run.workdir,
            suite,
            weights=weights,
            policy=policy,
            fits=_fits(run),
            user_tools=run.tokens.user_tools,
        )
        tell(suite.name, found | {"backbone": backbone(**shape)})
    run.environment.take_counts()


def evaluate_suite(
    settings: Settings,
    workdir: Path,
    suite: Suite,
    *,
    weights: str,
    policy: Callable[[Suite], Policy],
    fits: Callable[[Question], bool],
    user_tools: tuple[str, ...],
) -> dict[str, Any]:
    """Samples what is not there yet of one suite, scores all of it and returns the summary.

    `policy` is asked for only if there is something to sample; a question that `fits` refuses is
    not asked. `own` are the tags of own tools.
    """
    e = settings.evaluate
    fitting_Q = map(fits, suite.questions)
    asked = zip(suite.questions, suite.metrics, fitting_Q, strict=True)
    rows = [(q, metric, k, fitting) for q, metric, fitting in asked for k in range(e.samples)]
    to_sample = [(q, metric, k) for q, metric, k, fitting in rows if fitting]
    wanted = [(q.id, k) for q, _, k in to_sample]
    about = {
        "suite": suite.source,
        "questions": suite.digest(),
        "weights": weights,
        "samples": e.samples,
        "temperature": e.temperature,
    }
    digests = allgather_json(about)
    if any(each != digests[0] for each in digests):
        raise ValueError(
            f"evaluate.suites={suite.name!r}: the processes read different files or weights; give "
            "all of them the same"
        )
    files = Predictions(workdir / FOLDER, suite.name, wanted)
    done = on_first(lambda: files.begin(about, batch=e.rows))
    if done < len(wanted):
        _predict(policy(suite), to_sample, files, done=done, n_rows=e.rows)

    def score() -> dict[str, Any]:
        sampled = iter(files.sampled())
        found = [
            next(sampled) if fitting else prediction(q, metric, TOO_LONG, sample=k)
            for q, metric, k, fitting in rows
        ]
        scored = score_all(
            found, rule=e.scoring, user_tools=user_tools, judge=e.judge, folder=workdir / FOLDER
        )
        files.finish(scored)
        return summarise(scored, samples=e.samples)

    return {
        **{key: about[key] for key in ("suite", "weights", "temperature")},
        "metric": suite.metric,
        "scoring": e.scoring,
        "judge": e.judge.model if e.judge.url else "",
        **on_first(score),
    }


def _predict(
    policy: Policy,
    to_sample: Sequence[tuple[Question, str, int]],
    files: Predictions,
    *,
    done: int,
    n_rows: int,
) -> None:
    name = f"suites: {files.name}"
    progress = Progress(name, total=len(to_sample), done=done, every_s=SHOW_EVERY_S)
    if done:
        print(f"[{name}] {done} of {len(to_sample)} samples are there; going on", flush=True)
    for start in range(done, len(to_sample), n_rows):
        some = list(to_sample[start : start + n_rows])
        padded = local_part((some * n_rows)[:n_rows])  # one shape, one compilation
        sampled = policy([q for q, _, _ in padded], start)
        local_rows = local_part(range(n_rows))
        part = [
            prediction(q, metric, each, sample=k)
            for b, (q, metric, k), each in zip(local_rows, padded, sampled, strict=True)
            if b < len(some)
        ]
        rows = join_parts(allgather_json(part), [(q.id, k) for q, _, k in some])
        if is_first():
            files.append(rows)
        answered = sum(row["ending"] == Status.ANSWERED.name for row in rows) / len(rows)
        progress.show(start + len(some), answered=answered)
        if stop_asked() and start + len(some) < len(to_sample):
            raise Stopped(f"{start + len(some)} of {len(to_sample)} samples of {files.name} saved")


def _device_policy(run: Run, params: Params, suite: str) -> Policy:
    """Samples from `params`, which the sampler loaded; every suite has keys of its own."""
    key = jax.random.fold_in(stage_key(run.settings, STAGE), zlib.crc32(suite.encode()))

    def sample(questions: Sequence[Question], start: int) -> list[Sampled]:
        trajectory = run.sampler.sample(
            params,
            jax.random.fold_in(key, start),
            questions,
            group_size=1,
            n_hybrid=0,
            temperature=run.settings.evaluate.temperature,
        )
        response_BT = trajectory.source_BT > Source.PROMPT
        return [
            Sampled(
                text_without_retrieved(segments(run.tokens, trajectory, b)),
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

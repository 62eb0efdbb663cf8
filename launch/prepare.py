"""Lists the files and services that a run needs, and how to get those that are missing.

    python launch/prepare.py --config=configs/qwen7b.py

Takes the same flags as rapo_jax.main, and makes the checks that a run makes. Opens no accelerator,
downloads nothing and makes no paid web search. Exit status:
0 if everything is there, 1 if something is missing, 2 if the config is not valid.
"""

from __future__ import annotations

import dataclasses
import os
import sys
import tempfile
from collections.abc import Collection, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path

os.environ.setdefault("JAX_PLATFORMS", "cpu")  # no accelerator is opened

from need import Need, need, report

from rapo_jax.buffer.sources import read_sources
from rapo_jax.config import Settings
from rapo_jax.config.read import read_settings
from rapo_jax.io.api_keys import read_api_key
from rapo_jax.io.cache import check_cache
from rapo_jax.io.hub import is_hub_name
from rapo_jax.main import read_flags, resolve_flags
from rapo_jax.model.hf import check_tensors
from rapo_jax.model.hf_config import model_settings, refuse_contradictions
from rapo_jax.model.hf_files import Tensors
from rapo_jax.run.run import read_tokens, system_prompt
from rapo_jax.run.weights import newest_step
from rapo_jax.sampling.encoders import device_encoder
from rapo_jax.scoring.maths import check_math_verify
from rapo_jax.search.index.search import open_index
from rapo_jax.suites.catalogue import read_suites
from rapo_jax.suites.scores import open_judge
from rapo_jax.tasks import TASKS, Question, Task, check_metric
from rapo_jax.tasks.dataset_files import read_set
from rapo_jax.tasks.fitting import fitting_questions
from rapo_jax.tasks.user_code import load_user_code, task_parameters
from rapo_jax.text.protocol import user_tool_names
from rapo_jax.text.tokens import Tokens
from rapo_jax.tools import close_tools
from rapo_jax.tools.observation import Tool
from rapo_jax.tools.search_client import HttpSearch

HUB = {
    "Qwen2.5-3B-Instruct": "Qwen/Qwen2.5-3B-Instruct",
    "Qwen2.5-7B-Instruct": "Qwen/Qwen2.5-7B-Instruct",
    "Meta-Llama-3-8B-Instruct": "meta-llama/Meta-Llama-3-8B-Instruct (after asking for access)",
    "all-MiniLM-L6-v2": "sentence-transformers/all-MiniLM-L6-v2",
}
"""Folder name -> repository of the Hugging Face hub."""
TRACES = (
    "JSON lines of an off-policy agent's traces, for example {question, response, reward} or "
    "{key, value, reward}; rapo_jax/buffer/sources.py lists the forms. The paper sampled "
    "AEPO-Qwen3-14B, 16 trajectories a question. Or sample a policy that you trained: "
    "--config.buffer.agent=checkpoint --config.buffer.checkpoint=WORKDIR --config.buffer.files='()'"
)
AGENT = (
    "the workdir of a trained run or a cold start (it holds a folder checkpoints), or a Hugging "
    "Face folder (it holds *.safetensors)"
)
INDEX = (
    "build it: python -m rapo_jax.main --config=CONFIG --workdir=WORKDIR "
    "--config.stages=\"('search_index',)\" --config.search_index.corpus=CORPUS.jsonl "
    "--config.search_index.folder=FOLDER"
)
SERVER = (
    "serve a corpus (the paper: Wikipedia of 2018, wiki-18.jsonl): python -m "
    "rapo_jax.search.server --corpus=CORPUS.jsonl, or any server that speaks Search-R1's /retrieve"
)
PASSAGES = "JSON lines {id, contents} or {id, title, text} of your passages"


def needs(s: Settings, given: Collection[str] = ()) -> Iterator[Need]:
    """Everything on disk or on the network that a run with these settings opens.

    `given`: the dotted keys that flags set, which must not contradict the model.
    """
    task, user_tools = TASKS.get(s.task.name), dict[str, Tool]()

    def load() -> None:
        nonlocal task
        task, opened = load_user_code(s)
        close_tools(opened)
        user_tools.update(opened)

    if ":" in f"{s.task.name}{s.task.reward}" or s.tools.user_tools or s.tools.mcp.servers:
        yield need("task.name", s.task.name, load)
    tags = user_tool_names(user_tools)
    if s.model.folder:
        folder = s.model.folder
        yield need("model.folder", folder, partial(_check_model, folder, s, given), _hub(folder))
    tokenizer, questions = [], []
    if folder := s.tokenizer.folder or s.model.folder:
        check = partial(_tokens, folder, s, tags)
        tokenizer = [need("tokenizer.folder", folder, check, _hub(folder))]
    if s.task.name == "dataset" and not s.suites_alone:
        questions = list(_questions(s))
    both = [*tokenizer, *questions]
    yield from both
    if task and tokenizer and questions and not any(each.missing for each in both):
        lengths = partial(_check_lengths, folder, s, task, user_tools)
        yield need("rollout.prompt_tokens", str(s.rollout.prompt_tokens), lengths)
    if "evaluate" in s.stages and s.evaluate.suites:
        yield from _suites(s)
    yield from _search(s)
    if s.retrieval.encoder == "minilm":
        folder = s.retrieval.encoder_folder
        key = "retrieval.encoder_folder" if folder else "retrieval.encoder"
        yield need(key, folder or "minilm", partial(device_encoder, s.retrieval), _hub(folder))
    yield from _buffer(s, tags, task)
    yield need("task.metric", s.task.metric, partial(check_metric, s.task.metric))


def _hub(folder: str) -> str:
    """How to get a folder with a published model."""
    where = HUB.get(Path(folder).name, "")
    if not folder or is_hub_name(folder):
        return folder and f"hf download {folder}"
    return f"hf download {where} --local-dir {folder}" if where else ""


def _check_model(folder: str, s: Settings, given: Collection[str] = ()) -> None:
    model = dataclasses.replace(s.model, folder=folder)
    refuse_contradictions(model, given)
    check_tensors(Tensors(folder), model_settings(model))


def _tokens(folder: str, s: Settings, tags: tuple[str, ...]) -> Tokens:
    model = s.model
    if model.folder and (Path(model.folder) / "config.json").is_file():
        model = model_settings(model)
    tokens = read_tokens(s, Path(folder), model, tags)
    tokens.prompt_ids(s.prompt.system or "system", "question")
    return tokens


def _check_lengths(folder: str, s: Settings, task: Task, user_tools: Mapping[str, Tool]) -> None:
    """The questions' prompts fit, as in a run."""
    tokens = _tokens(folder, s, user_tool_names(user_tools))
    system = system_prompt(s, task, user_tools)
    world = task.make_world(**dataclasses.asdict(s.task.dataset) | {"documents": ""})
    fitting_questions(
        {"train": world.train, "eval": world.eval},
        lambda question: len(tokens.prompt_ids(system, question.question)),
        limit=s.rollout.prompt_tokens,
        skip=s.task.too_long == "skip",
    )


def _questions(s: Settings) -> Iterator[Need]:
    d = s.task.dataset
    for name, wanted in (("train", d.train), ("eval", d.eval)):
        key = f"task.dataset.{name}"
        parts = [part.strip() for part in wanted.split(",") if part.strip()]
        read = partial(read_set, key=key, manual_dir=d.manual_dir, malformed=d.malformed)
        listed = [need(key, each, partial(read, each)) for each in parts]
        if len(parts) > 1 and not any(each.missing for each in listed):
            listed.append(need(key, wanted, partial(read, wanted)))
        yield from listed


def _suites(s: Settings) -> Iterator[Need]:
    e, d = s.evaluate, s.task.dataset
    read = partial(
        read_suites,
        manual_dir=e.manual_dir or d.manual_dir,
        malformed=d.malformed,
        metric=s.task.metric,
    )
    for name in e.suites:
        yield need("evaluate.suites", name, partial(read, (name,)))
    if e.scoring == "strict":
        yield need("evaluate.scoring", "math-verify", check_math_verify)
    if e.judge.url:
        with tempfile.TemporaryDirectory() as folder:
            judge = partial(open_judge, e.judge, rule=e.scoring, folder=Path(folder))
            yield need("evaluate.judge", e.judge.model, lambda: judge().close())


def _search(s: Settings) -> Iterator[Need]:
    search, documents = s.tools.search, s.task.dataset.documents
    if any(pair[:1] == ("search",) for pair in s.tools.user_tools):
        return
    if search.index:
        yield need("tools.search.index", search.index, partial(open_index, search.index), INDEX)
    elif search.kind != "local":
        how = SERVER if search.kind == "retrieval" else ""
        what = f"{search.kind} {search.url or '(its public address)'}"
        yield need("tools.search", what, partial(_check_service, s), how)
        if search.cache:
            key, check = "tools.search.cache", partial(check_cache, search.cache)
            yield need(key, search.cache, partial(check, key=key))
    if s.task.name == "dataset" and documents:
        given = dataclasses.asdict(s.task.dataset) | {"train": "", "eval": ""}
        make = partial(TASKS["dataset"].make_world, **given)
        yield need("task.dataset.documents", documents, make, PASSAGES)


def _check_service(s: Settings) -> None:
    """Makes no web search, which costs money, and no cache."""
    plain = dataclasses.replace(s.tools.search, cache="")
    tool = HttpSearch(plain, passages=s.tools.passages, fits=lambda text: True)
    try:
        if plain.kind == "retrieval":
            tool.check()
    finally:
        tool.close()


def _buffer(s: Settings, tags: tuple[str, ...], task: Task | None) -> Iterator[Need]:
    b = s.buffer
    if b.folder and (Path(b.folder) / "done.json").is_file():
        yield Need("buffer.folder", b.folder, "")
        return
    if "buffer" not in s.stages:
        return
    known = _training_questions(s, task) if b.files and task else []
    for file in b.files:
        how = "" if Path(file).is_file() else TRACES
        yield need("buffer.files", file, partial(_read_traces, s, file, tags, known), how)
    for folder in b.checkpoints if "checkpoint" in b.agents else ():
        yield need("buffer.checkpoint", folder, partial(_check_agent, folder, s), AGENT)
    if "endpoint" in b.agents:
        key, variable = "buffer.endpoint.key_variable", b.endpoint.key_variable
        yield need(key, variable or "no key", partial(read_api_key, variable, key=key))


def _training_questions(s: Settings, task: Task) -> list[Question]:
    """Those that a trajectory without answers may be of; none where they cannot be read."""
    parameters = task_parameters(s)
    if s.task.name == "dataset":
        parameters |= {"documents": ""}
    try:
        world = task.make_world(**parameters)
    except (ValueError, FileNotFoundError):  # a need of its own names it
        return []
    return [question for split in ("train", "expert") for question in task.questions(world, split)]


def _read_traces(s: Settings, file: str, tags: tuple[str, ...], known: Sequence[Question]) -> None:
    read_sources(
        (file,),
        malformed=s.buffer.malformed,
        questions=known,
        score=lambda text, answers: 0.0,
        mask=s.retrieval.mask,
        max_chars=s.retrieval.max_chars,
        user_tools=tags,
        most_records=s.buffer.file_records,
    ).usable_step_traces(unit=s.retrieval.unit, include_answers=True)


def _check_agent(folder: str, s: Settings) -> None:
    if newest_step(Path(folder)) is None:
        _check_model(folder, s)


def main(arguments: Sequence[str]) -> None:
    resolved = resolve_flags(read_flags(arguments))
    try:
        settings = read_settings(resolved.config, files=False)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from error
    raise SystemExit(1 if report(list(needs(settings, given=resolved.overridden))) else 0)


if __name__ == "__main__":
    sys.path[0] = os.getcwd()  # config files import their base as configs.default
    main(sys.argv[1:])

"""Shared by all stages of a run: task, questions, tokenizer, tools, environment, sampler."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path

import jax
from jax.sharding import Mesh

from rapo_jax.config import ModelSettings, Settings
from rapo_jax.distributed import allgather_json, in_turn, on_first
from rapo_jax.environment import Environment
from rapo_jax.model.hf_config import model_settings
from rapo_jax.model.sharding import make_mesh
from rapo_jax.run.checks import (
    check_calls,
    check_condensing,
    check_devices,
    check_retrieved_tokens,
)
from rapo_jax.run.folders import buffer_folder, cold_start_folder, tokenizer_folder
from rapo_jax.run.metrics import Metrics
from rapo_jax.sampling.condensing import make_condenser, prompt_room
from rapo_jax.sampling.encoders import DeviceEncoder, device_encoder
from rapo_jax.sampling.program_cache import keep_programs_with_callbacks
from rapo_jax.sampling.sampler import Sampler
from rapo_jax.search.ngram import NgramEncoder
from rapo_jax.tasks import Task, check_metric, find_reward
from rapo_jax.tasks.fitting import fitting_questions
from rapo_jax.tasks.schema import Score
from rapo_jax.tasks.stream import (
    QuestionFiles,
    QuestionSource,
    check_same_questions,
    digest_of,
    prepare_questions,
)
from rapo_jax.tasks.user_code import load_user_code, task_parameters
from rapo_jax.text.observations import whole_observation_ids
from rapo_jax.text.protocol import user_tool_names, with_tools
from rapo_jax.text.protocols import find_protocol
from rapo_jax.text.tokens import Tokens, build_tokenizer, load_tokens
from rapo_jax.tools import close_tools, make_tools
from rapo_jax.tools.observation import Tool
from rapo_jax.tools.user import UserTool

SEARCH_ORDERS = (1, 2)
"""n-grams of the local search: with bigrams 'Dorim mentor' finds its own fact and no other."""


@dataclasses.dataclass(frozen=True)
class Run:
    """An open run: its settings and everything that more than one stage uses."""

    settings: Settings
    workdir: Path
    mesh: Mesh
    task: Task
    world: object
    """What the task's `make_world` returned; only functions of the task read it."""
    questions: Mapping[str, QuestionSource]
    """By split; those that are too long for a prompt are left out."""
    too_long: Mapping[str, int]
    """Questions left out, of the splits that lack some."""
    tools: Mapping[str, Tool]
    tokens: Tokens
    model: ModelSettings
    environment: Environment
    sampler: Sampler
    encoder: DeviceEncoder
    metrics: Metrics

    @property
    def cold_start(self) -> Path:
        return cold_start_folder(self.settings, self.workdir)

    @property
    def reward(self) -> Score:
        """The outcome reward of a response: the paper's or a user's."""
        t, tokens = self.settings.task, self.tokens
        return find_reward(
            t.reward, metric=t.metric, user_tools=tokens.user_tools, answers=tokens.protocol.answers
        )

    @property
    def system(self) -> str:
        return system_prompt(self.settings, self.task, self.tools)

    @property
    def buffer(self) -> Path:
        return buffer_folder(self.settings, self.workdir)

    def close(self) -> None:
        close_tools(self.tools)
        self.metrics.close()


def open_run(
    settings: Settings, workdir: Path, *, devices: Sequence[jax.Device] | None = None
) -> Run:
    """Prepares questions, tokenizer, tools and the sampler; nothing is compiled yet.

    `devices` are those to compute on; None takes all devices of all processes.

    Raises:
        ValueError: the settings do not fit the devices, the model or the task; names the key.
    """
    keep_programs_with_callbacks()
    mesh = make_mesh(devices, **dataclasses.asdict(settings.mesh))
    check_devices(settings, mesh)
    check_metric(settings.task.metric)
    model = model_settings(settings.model)
    r, log = settings.rollout, settings.log
    task, user_tools = load_user_code(settings)
    check_calls(settings, task)
    tags = user_tool_names(user_tools)
    parameters = task_parameters(settings)
    world = task.make_world(**parameters)
    questions = _open_questions(settings, workdir, task, world, parameters)
    tokens = _open_tokens(settings, workdir, model, task, world, tags)
    check_condensing(settings, tokens.protocol)
    check_retrieved_tokens(settings, tokens)
    model = dataclasses.replace(model, vocab=len(tokens.bytes_V))
    tools = _open_tools(settings, task.documents(world), tokens, user_tools)
    system = system_prompt(settings, task, tools)
    fitting = fitting_questions(
        questions,
        lambda question: len(tokens.prompt_ids(system, question.question)),
        limit=r.prompt_tokens,
        skip=settings.task.too_long == "skip",
    )
    environment = _open_environment(settings, tokens, tools)
    encoder, condenses = device_encoder(settings.retrieval), tokens.protocol.condenses
    sampler = Sampler(
        model,
        dataclasses.replace(r, max_calls=r.max_calls + tokens.protocol.refused_turns),
        tokens,
        environment,
        mesh,
        system=system,
        embed=encoder.embed,
        query_shape=encoder.query_shape,
        condenser=make_condenser(settings, model, tokens, mesh) if condenses else None,
    )
    return Run(
        settings=settings,
        workdir=workdir,
        mesh=mesh,
        task=task,
        world=world,
        questions=fitting,
        too_long={k: n for k, q in fitting.items() if (n := len(questions[k]) - len(q))},
        tools=tools,
        tokens=tokens,
        model=model,
        environment=environment,
        sampler=sampler,
        encoder=encoder,
        metrics=Metrics(workdir, tensorboard=log.tensorboard, wandb=log.wandb),
    )


def _open_environment(settings: Settings, tokens: Tokens, tools: Mapping[str, Tool]) -> Environment:
    r = settings.rollout
    return Environment(
        tokens,
        tools,
        observation_tokens=r.observation_tokens,
        retrieved_tokens=r.retrieved_tokens,
        max_calls=r.max_calls,
        condense_room=prompt_room(settings),
    )


def _open_questions(
    settings: Settings, workdir: Path, task: Task, world: object, parameters: Mapping[str, object]
) -> Mapping[str, QuestionFiles]:
    """The task's questions by split, written to disk once; none where only suites are evaluated."""
    for source in task.sources(world):
        if "summary" in source:
            print(f"[data] {source['summary']}", flush=True)
    if settings.suites_alone:
        return {}
    folder = Path(settings.task.data_dir or workdir / "data").absolute()
    files = in_turn(
        lambda: prepare_questions(settings.task.name, parameters, world, data_dir=str(folder))
    )
    if jax.process_count() > 1:
        digests = {split: digest_of(questions) for split, questions in files.items()}
        check_same_questions(allgather_json(digests))
    return files


def _open_tokens(
    settings: Settings,
    workdir: Path,
    model: ModelSettings,
    task: Task,
    world: object,
    tags: tuple[str, ...],
) -> Tokens:
    """The run's tokenizer, which is trained on the task's corpus where no folder is given.

    Raises:
        ValueError: it has more tokens than the model.
    """
    cold_start = cold_start_folder(settings, workdir)
    cold_start.mkdir(parents=True, exist_ok=True)
    folder = tokenizer_folder(settings, workdir)

    def make_tokenizer() -> None:
        made = (folder / "tokenizer_config.json").is_file()
        if folder == cold_start / "tokenizer" and not made:
            size = settings.tokenizer.vocab_size
            build_tokenizer(folder, task.corpus(world), vocab_size=size, user_tools=tags)

    on_first(make_tokenizer)
    return read_tokens(settings, folder, model, tags)


def read_tokens(
    settings: Settings, folder: Path, model: ModelSettings, tags: tuple[str, ...]
) -> Tokens:
    """The tokenizer in `folder` with the tags of the user's tools.

    Raises:
        ValueError: it cannot be used, or has more tokens than the model of model.folder.
    """
    tokens = load_tokens(
        folder,
        vocab_size=model.vocab,
        user_tools=tags,
        protocol=find_protocol(settings.protocol, tags),
        template_arguments=settings.prompt.template_arguments,
    )
    if model.folder and len(tokens.bytes_V) > model.vocab:
        raise ValueError(
            f"tokenizer.folder={str(folder)!r}: its ids go up to {len(tokens.bytes_V) - 1}, but "
            f"model.folder={model.folder!r} has vocab_size={model.vocab}; use the model's tokenizer"
        )
    return tokens


def _open_tools(
    settings: Settings, documents: Sequence[str], tokens: Tokens, user_tools: Mapping[str, Tool]
) -> Mapping[str, Tool]:
    t, limit = settings.tools, settings.rollout.observation_tokens
    in_memory = t.search.kind == "local" and not t.search.index and "search" not in user_tools
    if not documents and in_memory:
        raise ValueError(
            f"tools.search.kind='local': task.name={settings.task.name!r} has no documents to "
            "search; give it some or an index (tools.search.index), search a service "
            "(tools.search.kind='retrieval'), or replace the tool: "
            "tools.user_tools=(('search', 'module:function'),)"
        )

    def fits(text: str) -> bool:
        return tokens.protocol.condenses or len(whole_observation_ids(tokens, text)) <= limit

    tools = make_tools(
        t,
        documents=documents,
        # a search service has its own documents
        encode=NgramEncoder.fit(documents or [""], width=t.search_width, orders=SEARCH_ORDERS),
        fits=fits,
        line=tokens.protocol.passage,
        user_tools=user_tools,
    )
    missing = getattr(tools["python"], "missing_layers", ())
    if missing:
        print(f"[tools] the python sandbox runs without: {', '.join(missing)}", flush=True)
    return tools


def system_prompt(settings: Settings, task: Task, tools: Mapping[str, Tool]) -> str:
    """prompt.system, else the protocol's, else the task's with a line for each user tool."""
    user_tools = {name: tools[name] for name in user_tool_names(tools)}
    texts = {name: tool.purpose for name, tool in user_tools.items() if isinstance(tool, UserTool)}
    fixed = settings.prompt.system or find_protocol(settings.protocol, tuple(user_tools)).system
    return with_tools(task.system_prompt, texts) if fixed is None else fixed

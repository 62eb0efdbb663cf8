"""What tests of several packages share: a small config, a talkative policy, and one rollout of it.

Eight CPU devices are forced before jax starts; a test takes as many of them as it wants. Programs
are compiled without LLVM's optimisations and by XLA's older emitters, which takes about 205 CPU-s
in all instead of 455; tests of the whole job compile as users do.
"""

from __future__ import annotations

import atexit
import dataclasses
import importlib.util
import os
import shutil
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from tests.compiling import QUICK

os.environ["XLA_FLAGS"] = f"--xla_force_host_platform_device_count=8 {QUICK}"
os.environ["NPROC"] = "16"  # fewer, and callbacks of eight devices wait for each other's threads
if "PYTEST_XDIST_WORKER" not in os.environ:  # workers inherit it: what one compiles, all have
    os.environ["JAX_COMPILATION_CACHE_DIR"] = tempfile.mkdtemp(prefix="rapo_jax_tests_")
    atexit.register(shutil.rmtree, os.environ["JAX_COMPILATION_CACHE_DIR"], ignore_errors=True)
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.2"

import hypothesis
import jax
import numpy as np
import pytest

from rapo_jax.buffer.agents import run_agents
from rapo_jax.buffer.buffer import Encoder, StepTraceBuffer
from rapo_jax.buffer.retriever import Retriever
from rapo_jax.buffer.trajectories import AgentTrajectory, Splitting, split_all
from rapo_jax.config import ModelSettings, Settings
from rapo_jax.config.read import read_settings
from rapo_jax.environment import Environment
from rapo_jax.model.sharding import layout, make_mesh
from rapo_jax.model.transformer import init_params
from rapo_jax.sampling.program_cache import keep_programs_with_callbacks
from rapo_jax.sampling.sampler import Sampler
from rapo_jax.sampling.tapes import steps_without_retrieved, text_without_retrieved
from rapo_jax.search.ngram import NgramEncoder
from rapo_jax.tasks import TASKS, Question, outcome_reward
from rapo_jax.text.tokens import Tokens, build_tokenizer, load_tokens
from rapo_jax.tools.observation import Observation, Tool
from rapo_jax.tools.search import local_search
from rapo_jax.types import Params, Trajectory
from tests.loopback import serve  # noqa: F401

pytest_plugins = ["tests.runs"]  # the fixtures of train/ and stages/

keep_programs_with_callbacks()  # what one worker compiles, all have

hypothesis.settings.register_profile("unhurried", deadline=None)  # a busy machine fails no test
hypothesis.settings.load_profile("unhurried")

HERE = Path(__file__).parent
TASK = TASKS["chains"]
QUESTIONS, GROUP, HYBRID = 8, 4, 2
"""Of the shared rollout; as many questions as devices, so that it can be spread over all."""


@pytest.fixture(scope="session")
def small_config() -> Callable[..., dict[str, Any]]:
    """The small config as a plain dict, with changes by dotted key."""
    spec = importlib.util.spec_from_file_location("small", HERE / "small.py")
    small = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(small)

    def make(changes: Mapping[str, Any] | None = None) -> dict[str, Any]:
        config = small.get_config().to_dict()
        for key, value in (changes or {}).items():
            *groups, leaf = key.split(".")
            group = config
            for name in groups:
                group = group[name]
            group[leaf] = value
        return config

    return make


@pytest.fixture(scope="session")
def small_settings(small_config) -> Callable[..., Settings]:
    """Checked settings of the small config, with changes by dotted key."""
    return lambda changes=None: read_settings(small_config(changes))


SLOW = (
    "benchmarks", "faults/test_disk.py", "faults/test_run.py", "faults/test_whole_run.py",
    "launch", "model", "plan", "report", "rollout", "run/", "sampling", "stages", "train",
    "test_main.py", "test_notebook.py", "test_package.py", "test_system.py",
    "test_system_chat_tools.py", "test_system_suites.py", "test_usage.py", "test_user_examples.py",
    "tools/sandbox/test_attacks.py", "tools/sandbox/test_sandbox.py",
    "tools/sandbox/test_workers.py",
)  # fmt: skip
"""Folders and files of tests that compile models or start jobs: launch/test.sh fast skips them."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    slow = tuple(str(HERE / name) for name in SLOW)
    for item in items:
        if str(item.path).startswith(slow):
            item.add_marker(pytest.mark.slow)


class House(NamedTuple):
    """What a rollout needs, short of a sampler."""

    settings: Settings
    world: Any
    tokens: Tokens
    model: ModelSettings
    params: Params
    system: str
    questions: list[Question]
    asked: list[Question]
    """Those of the shared rollouts."""
    expert_questions: list[Question]
    tools: dict[str, Tool]
    retriever: Retriever
    encode: Encoder
    """Key texts to keys, as in the retriever's buffer."""


def count_python(calls: list[str]) -> list[Observation]:
    """Stands for the sandbox: a number that depends on the program alone."""
    return [Observation(str(len(call)), "ok" if call else "empty") for call in calls]


def talkative_params(
    model: ModelSettings, tokens: Tokens, liked: Mapping[int, float] | None = None
) -> Params:
    """Random parameters whose policy likes tags: it calls, answers and stops within a few tokens.

    `liked`: tokens that it likes instead, with the biases of their logits.

    Feature 0 of the residual stream is 4 everywhere and no layer writes there, so row 0 of the
    head is a bias of the logits, and everything else depends on the whole history.
    """
    rng = np.random.default_rng(0)

    def draw(path: Any, leaf: Any) -> np.ndarray:
        scale = "scale" in jax.tree_util.keystr(path)
        return np.float32(np.ones(leaf.shape) if scale else 0.4 * rng.standard_normal(leaf.shape))

    shapes = jax.eval_shape(lambda: init_params(model, jax.random.key(0)))
    params = jax.tree_util.tree_map_with_path(draw, shapes)
    params["embed_VD"][:, 0] = 4.0
    for name in ("output", "down"):
        params["blocks"][name]["kernel"][:, :, 0] = 0.0
    if liked is None:
        tags = {tokens.encode_protocol(text)[0]: bias for text, bias in LIKED.items()}
        liked = tags | dict.fromkeys(tokens.eos_ids, LIKED_END)
    ids = list(liked)
    head_DV = params["head_DV"]
    head_DV[0] = 0.0
    head_DV[:, ids] *= 0.3
    head_DV[0, ids] = list(liked.values())
    return params


LIKED = {
    "</search>": 5.5, "</python>": 5.3, "</answer>": 4.4,
    "<search>": 5.0, "<python>": 4.6, "<answer>": 4.4, "<think>": 4.0,
}  # fmt: skip
LIKED_END = 3.4


@pytest.fixture(scope="session")
def house(small_settings, tmp_path_factory) -> House:
    settings = small_settings({"rollout.questions": QUESTIONS})
    world = TASK.make_world(**dataclasses.asdict(settings.task.chains))
    folder = tmp_path_factory.mktemp("tokenizer")
    build_tokenizer(folder, TASK.corpus(world), vocab_size=1024)
    tokens = load_tokens(folder)
    model = dataclasses.replace(settings.model, vocab=len(tokens.bytes_V))
    documents = TASK.documents(world)
    encode = NgramEncoder.fit(documents, width=64, orders=(1, 2))
    tools = {"search": local_search(documents, encode, passages=1), "python": count_python}
    return House(
        settings,
        world,
        tokens,
        model,
        talkative_params(model, tokens),
        TASK.system_prompt,
        TASK.questions(world, "train"),
        TASK.questions(world, "train")[::7][:QUESTIONS],
        TASK.questions(world, "expert"),
        tools,
        *make_retriever(settings, world, tools, tokens),
    )


def make_retriever(
    settings: Settings, world: Any, tools: Any, tokens: Tokens
) -> tuple[Retriever, Encoder]:
    """A Step-Trace Buffer of the scripted expert with its index, and its encoder."""
    questions = TASK.questions(world, "expert")[:12]
    groups = run_agents(
        TASK.expert(world, error=0.1), questions, tools, max_calls=3, samples=1, rng_seed=0
    )
    trajectories = [
        AgentTrajectory(
            q.id,
            q.question,
            steps_without_retrieved(row),
            outcome_reward(text_without_retrieved(row), q.answers),
            "expert",
        )
        for q, group in zip(questions, groups, strict=True)
        for row in group
    ]
    how = Splitting("step", include_answers=True, mask=settings.retrieval.mask, max_chars=4000)
    step_traces = split_all(trajectories, how)
    keys = [step_trace.key for step_trace in step_traces]
    encode = NgramEncoder.fit(keys, width=32, orders=(1, 2))
    buffer = StepTraceBuffer.build(
        step_traces,
        how,
        encode=encode,
        encoder_identity=encode.identity,
        tokenizer_fingerprint=tokens.fingerprint,
        count_tokens=lambda text: len(tokens.encode(text)),
        info={},
    )
    return Retriever(buffer, kind="exact"), encode


class Playing(NamedTuple):
    """A sampler, the parameters on its devices, and its own environment."""

    sampler: Sampler
    params: Params
    environment: Environment


@pytest.fixture(scope="session")
def make_sampler(house) -> Callable[..., Playing]:
    """A sampler in the house."""

    def make(
        *,
        devices: int,
        driver: str,
        tools: Mapping[str, Tool] | None = None,
        fsdp: int = 1,
        tensor: int = 1,
        tokens: Tokens = house.tokens,
        **rollout: Any,
    ) -> Playing:
        r = dataclasses.replace(house.settings.rollout, driver=driver, **rollout)
        environment = Environment(
            tokens,
            tools or house.tools,
            observation_tokens=r.observation_tokens,
            retrieved_tokens=r.retrieved_tokens,
        )
        encode = house.encode
        environment.use_buffer(
            house.retriever, encode, exclude_same_question=False, without_retrieved_history=True
        )
        mesh = make_mesh(jax.devices()[:devices], fsdp=fsdp, tensor=tensor)
        sampler = Sampler(
            house.model,
            r,
            tokens,
            environment,
            mesh,
            system=TASK.system_prompt,
            embed=lambda query_BE: query_BE,
            query_shape=jax.ShapeDtypeStruct((32,), np.float32),
        )
        where = layout(mesh, house.model, house.params, name="training")
        return Playing(sampler, sampler.load(jax.device_put(house.params, where)), environment)

    return make


@pytest.fixture(scope="session")
def tapes(house, make_sampler) -> Trajectory:
    """One rollout of the house's questions, half of each group hybrid."""
    playing = make_sampler(devices=1, driver="host")
    return playing.sampler.sample(
        playing.params,
        jax.random.key(0),
        house.asked,
        group_size=GROUP,
        n_hybrid=HYBRID,
        temperature=1.0,
        probability=0.7,
    )

"""Own tools, rewards and tasks reach rollouts, training, evaluation and the buffer of a run."""

from __future__ import annotations

import dataclasses
import re

import jax
import numpy as np
import pytest

from rapo_jax.config import ToolsSettings
from rapo_jax.environment import Environment
from rapo_jax.model.sharding import layout, make_mesh
from rapo_jax.run.policy import load_policy
from rapo_jax.run.run import open_run
from rapo_jax.sampling.sampler import Sampler
from rapo_jax.sampling.tapes import segments
from rapo_jax.stages.buffer_sources import sample_agents
from rapo_jax.tasks.stream import load_questions
from rapo_jax.text.protocol import render_result
from rapo_jax.text.protocols import rapo
from rapo_jax.text.tokens import build_tokenizer
from rapo_jax.tools.user import load_user_tools
from rapo_jax.train.evaluate import evaluate
from rapo_jax.train.rl import train_rl
from rapo_jax.types import Source
from tests.model.checkpoints import make_model, save_model

QUARTER = {"task.reward": "tests.user_code:quarter"}


def test_a_policy_that_closes_the_tag_of_an_own_tool_reads_what_the_tool_says(house):
    """Whose tokens of the python tags are spelled as those of an own tool: it likes to call it."""
    spelled = {b"<python>": b"<shout>", b"</python>": b"</shout>"}
    bytes_V = [spelled.get(token, token) for token in house.tokens.bytes_V]
    names = ("shout",)
    tokens = dataclasses.replace(
        house.tokens, bytes_V=bytes_V, user_tools=names, protocol=rapo(names)
    )
    settings = ToolsSettings(user_tools=(("shout", "tests.user_code:shout"),), timeout_s=30.0)
    user_tools = load_user_tools(settings)
    r = dataclasses.replace(house.settings.rollout, driver="host")
    rooms = {name: getattr(r, name) for name in ("observation_tokens", "retrieved_tokens")}
    mesh = make_mesh(jax.devices()[:1], fsdp=1, tensor=1)
    environment = Environment(tokens, {"search": house.tools["search"], **user_tools}, **rooms)
    width = jax.ShapeDtypeStruct((32,), np.float32)
    sampler = Sampler(
        house.model, r, tokens, environment, mesh, system="", embed=lambda x: x, query_shape=width
    )
    params = jax.device_put(house.params, layout(mesh, house.model, house.params, name="training"))
    trajectory = sampler.sample(
        sampler.load(params),
        jax.random.key(0),
        house.asked,
        group_size=2,
        n_hybrid=0,
        temperature=1.0,
    )
    rows = [segments(tokens, trajectory, b) for b in range(len(trajectory.length_B))]
    called = 0
    for row in rows:
        for step, said in zip(row, row[1:], strict=False):
            if step.text.endswith("</shout>") and said.source == Source.TOOL:
                _, _, call = step.text.removesuffix("</shout>").rpartition("<shout>")
                call = call.strip() if "<shout>" in step.text else ""
                whole = render_result(call.upper() + "!", ("shout",))
                assert said.text.removesuffix("</result>") == whole[: len(said.text) - 9]
                called += 1
    assert called == environment.take_counts()["shout"] > 3


@pytest.fixture(scope="module")
def neighbours(tmp_path_factory):
    """Config keys of a run on an own task, from a random tiny model."""
    folder = tmp_path_factory.mktemp("own") / "model"
    save_model(make_model("qwen2_tied", vocab_size=320), folder)
    build_tokenizer(folder, ["Who is next to Anna? Bob is."] * 2, vocab_size=320)
    return {
        "method": "grpo",
        "stages": ("rl", "evaluate"),
        "task.name": "tests.user_code:NEIGHBOURS",
        "task.user_arguments": {"held_out": 1},
        "tools.user_tools": (("shout", "tests.user_code:shout"),),
        "model.folder": str(folder),
        "rollout.prompt_tokens": 700,
        "rollout.max_tokens": 900,
        "rl.buckets": (900,),
    }


def open_small(small_settings, changes, folder):
    return open_run(small_settings(changes), folder, devices=jax.devices()[:1])


def test_a_run_on_an_own_task_asks_its_questions_searches_its_documents_and_has_its_tools(
    neighbours, small_settings, tmp_path, capsys
):
    run = open_small(small_settings, neighbours, tmp_path)
    assert [q.question for q in load_questions(run.questions["eval"])] == [
        "Who is next to Anna?",
        "Who sees Bob?",
    ]
    assert "Carla is next to Carla" in run.tools["search"](["Carla next"])[0].text
    assert list(run.tools) == ["search", "python", "shout"] and run.tokens.user_tools == ("shout",)
    *_, told = run.system.splitlines()
    assert told == ("Another tool: write its input inside <shout> and </shout>. Says it louder.")
    assert "neighbours: 5 questions, 2 held out" in capsys.readouterr().out
    run.close()
    prompted = open_small(small_settings, neighbours | {"prompt.system": "be good"}, tmp_path)
    assert prompted.system == "be good"
    prompted.close()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"stages": ("sft",)},
            "stages=('sft',): task.name='tests.user_code:NEIGHBOURS' has no demo",
        ),
        (
            {"model.folder": ""},
            "model.folder='': task.name='tests.user_code:NEIGHBOURS' has no scr",
        ),
        (
            {"task.user_arguments": {"x": 1}},
            "task.user_arguments={'x': 1}: neighbours(*, held_out=2): got an unexpected",
        ),
        ({"task.name": "own_task:T"}, "task.name='own_task:T': there is no module own_task; put"),
        ({"task.reward": "a:b"}, "task.reward='a:b': there is no module a; put a.py into"),
        (
            {"tools.user_tools": (("think", "a:b"),)},
            "tools.user_tools=('think', 'a:b'): <think> is another tag",
        ),
        (
            {"tools.user_tools": (("x", "a:b"),)},
            "tools.user_tools.x='a:b': there is no module a; put a.py into",
        ),
        (
            {"task.name": "tests.user_code:NO_DOCUMENTS", "task.user_arguments": {}},
            "tools.search.kind='local': task.name='tests.user_code:NO_DOCUMENTS' has no documents",
        ),
    ],
)
def test_user_code_that_cannot_work_is_refused_when_a_run_opens(
    neighbours, small_settings, tmp_path, changes, message
):
    with pytest.raises(ValueError, match=re.escape(message)):
        open_small(small_settings, neighbours | changes, tmp_path)


def test_an_own_search_needs_no_documents(neighbours, small_settings, tmp_path):
    changes = {
        "task.name": "tests.user_code:NO_DOCUMENTS",
        "task.user_arguments": {},
        "tools.user_tools": (
            ("search", "tests.user_code:shout"),
            ("python", "tests.user_code:shout"),
        ),
    }
    run = open_small(small_settings, neighbours | changes, tmp_path)
    assert run.tools["search"](["a"]) == run.tools["python"](["a"]) == [("A!", "ok")]
    assert run.tokens.user_tools == () and "Another tool" not in run.system
    run.close()


def test_training_rewards_with_an_own_reward(branch, metrics_of):
    run = branch({**QUARTER, "rl.steps": 1})
    train_rl(run)
    row = metrics_of(run.workdir)[0]
    assert row["reward/mean"] == row["reward/hybrid"] == 0.25
    assert 0.0 < row["reward/format_bad"] < 1.0  # judged by the protocol, whatever the reward


def test_evaluation_shows_an_own_reward_and_counts_accuracy_as_ever(branch, trunk):
    questions = load_questions(trunk.questions["eval"])[:8]
    params = load_policy(trunk, trunk.cold_start)
    found, wanted = evaluate(branch(QUARTER), params, questions), evaluate(trunk, params, questions)
    assert found["reward"] == 0.25
    assert found["accuracy"] == wanted["accuracy"]


def test_the_buffers_own_agent_is_scored_by_an_own_reward(branch):
    traces, _ = sample_agents(branch(QUARTER))()
    assert {trace.reward for trace in traces} == {0.25}


def test_training_ends_with_the_key_of_a_reward_that_is_no_finite_number(branch):
    run = branch({"task.reward": "tests.user_code:not_finite", "rl.steps": 1})
    with pytest.raises(RuntimeError, match="task.reward='tests.user_code:not_finite': it gave nan"):
        train_rl(run)

"""The examples of docs/user_code.md: each is short and runs as printed."""

from __future__ import annotations

import ast
import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from rapo_jax.buffer.agents import run_agent
from rapo_jax.config import ToolsSettings
from rapo_jax.tasks import Question, find_reward, find_task, outcome_reward
from rapo_jax.text.protocol import tags
from rapo_jax.text.tokens import build_tokenizer
from rapo_jax.tools.user import load_user_tools
from tests.model.checkpoints import make_model, save_model

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "user_code.md").read_text(encoding="utf-8")
FILES = {
    found[1]: found[2]
    for found in re.finditer(r"```python\n# (\w+\.py)\n(.*?)```", PAGE, re.DOTALL)
}
PATIENCE_S = 900
COMMANDS = [shlex.split(block) for block in re.findall(r"```\n(bash .*?)```", PAGE, re.DOTALL)]
FLAGS = [word for command in COMMANDS for word in command if word.startswith("--config.")]
SMALL = """
    prompt.system=tools rollout.questions=2 rollout.group_size=2 rollout.n_hybrid=0
    rollout.max_calls=1 rollout.prompt_tokens=60 rollout.step_tokens=12 rollout.driver=host
    rollout.observation_tokens=12 rollout.retrieved_tokens=12 rollout.max_tokens=120
    rl.buckets=(120,) rl.steps=1 rl.mini_batches=1 rl.micro_tokens=480 stages=('rl',)
    log.trajectories=True log.trajectory_every=1 log.tensorboard=False tools.workers=1
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Every file of the page, in a folder on sys.path."""
    folder = tmp_path_factory.mktemp("user")
    for name, text in FILES.items():
        (folder / name).write_text(text, encoding="utf-8")
    sys.path.append(str(folder))
    yield folder
    sys.path.remove(str(folder))
    for name in FILES:
        sys.modules.pop(name.removesuffix(".py"), None)


def named(flag):
    """The value of a flag of the page's commands."""
    (value,) = [word.partition("=")[2] for word in FLAGS if word.startswith(f"--config.{flag}=")]
    return value


def test_the_page_has_a_tool_a_reward_and_a_task_with_its_config_of_about_twenty_lines_each():
    assert set(FILES) == {"my_tools.py", "my_rewards.py", "my_task.py", "my_config.py"}
    for text in FILES.values():
        assert len([line for line in text.splitlines() if line.strip()]) <= 20
        assert max(map(len, text.splitlines())) <= 100
    assert len(COMMANDS) == 3


def test_the_tool_is_called_in_a_rollout(folder):
    def agent(question, history, rng):
        call = "<think>hm</think><calculator>3 * (4 + 5)</calculator>"
        return call if not history else "<think>so</think><answer>\\boxed{27}</answer>"

    pairs = ast.literal_eval(named("tools.user_tools"))
    tools = load_user_tools(ToolsSettings(user_tools=pairs, timeout_s=30.0, output_chars=100))
    question = Question("q", "How much?", ("27",), "k", "test")
    row = run_agent(agent, question, tools, max_calls=2, rng=np.random.default_rng(0))
    assert [segment.text for segment in row][1] == "<result> 27</result>"
    text = "".join(segment.text for segment in row)
    assert outcome_reward(text, ["27"], user_tools=("calculator",)) == 1.0
    results = tools["calculator"](["7 / 2", "1 / 0", "__import__('os')", "2 +"])
    assert results[0] == ("3.5", "ok")
    assert [outcome for _, outcome in results] == ["ok", "error", "error", "error"]
    assert results[2].text == "error: ValueError: only numbers and + - * / are known"


def test_the_reward_costs_calls(folder):
    reward = find_reward(named("task.reward"), metric="f1", user_tools=())
    call = "<think>a</think><search>b</search><result> c</result>"
    answer = "<think>d</think><answer>\\boxed{Bob}</answer>"
    assert reward(answer, ("Bob",)) == 1.0
    assert reward(2 * call + answer, ("Bob",)) == pytest.approx(0.9)


def test_all_of_them_together_run_from_the_command_line(folder, tmp_path):
    model = tmp_path / "model"
    save_model(make_model("qwen2_tied", vocab_size=320), model)
    build_tokenizer(model, [" ".join(tags())] * 2, vocab_size=320, user_tools=("calculator",))
    small = [f"--config.{word}" for word in SMALL.split()]
    flags = [word.replace("=FOLDER", f"={model}") for word in FLAGS]
    done = subprocess.run(
        [
            *(sys.executable, "-m", "rapo_jax.main", f"--config={folder / 'my_config.py'}"),
            *(f"--workdir={tmp_path / 'run'}", *small, *flags),
        ],
        cwd=ROOT,  # the user's code is beside the config file
        env=os.environ | {"XLA_FLAGS": ""},
        capture_output=True,
        text=True,
        check=False,
        timeout=PATIENCE_S,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert "capitals: 4 questions, 1 held out" in done.stdout
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    assert config["tools"]["user_tools"] == [["calculator", "my_tools:calculate"]]
    assert config["task"]["user_arguments"] == {"held_out": 1}
    metrics = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").open()]
    assert "tools/calculator" in metrics[0]
    assert metrics[0]["reward/mean"] <= -1.0  # no format at all, and a call costs more
    task, reward = (
        find_task("my_task:TASK"),
        find_reward("my_rewards:score", metric="f1", user_tools=()),
    )
    asked = {q.question: q.answers for q in task.questions(task.make_world(held_out=1), "train")}
    rows = [json.loads(line) for line in (tmp_path / "run" / "trajectories.jsonl").open()]
    assert len(rows) == 4
    for row in rows:
        text = "".join(part["text"] for part in row["segments"] if part["source"] != "PROMPT")
        assert row["reward"] == pytest.approx(reward(text, asked[row["question"]]))

"""The command trains a checkpoint in the tool calls of Llama's chat template."""

from __future__ import annotations

import json

from rapo_jax.text.protocols import CHAT_TOOLS
from rapo_jax.text.tokens import load_tokens
from tests.model.checkpoints import make_model, save_model
from tests.tasks.published.fixtures import lines
from tests.test_system_suites import WORDS, run
from tests.text.test_chat import make
from tests.text.test_chat_tools import FORMS

CALLS = [
    json.dumps({"name": "search", "parameters": {"query": f"{word} {n}"}})
    for word in WORDS
    for n in range(25)
]
ENDS = [f"<|end_{n}|>" for n in range(120)]
ANSWERS = [f"\\boxed{{{' ' * n}Anna}}" for n in range(60)]


def test_grpo_trains_on_llamas_tool_calls(tmp_path):
    """A random model: of its vocabulary a third are whole calls, and as many end a turn."""
    control, _, end, template = FORMS["llama"]
    folder, work = tmp_path / "model", tmp_path / "run"
    folder.mkdir()
    make(folder, (*control, *ENDS), (*CALLS, *ANSWERS), end, template)
    size = len(load_tokens(folder).bytes_V)
    save_model(make_model("llama31", vocab_size=size), folder)
    ids = load_tokens(folder).tokenizer.get_added_vocab()
    stops = {"eos_token_id": [ids[end], *(ids[text] for text in ENDS)]}
    (folder / "generation_config.json").write_text(json.dumps(stops))
    assert len(load_tokens(folder, protocol=CHAT_TOOLS).protocol.stops) == 122
    lines(
        tmp_path / "q.jsonl", [{"question": f"Who sees {w}?", "answers": ["Anna"]} for w in WORDS]
    )
    lines(tmp_path / "c.jsonl", [{"id": n, "contents": f"{w} is"} for n, w in enumerate(WORDS)])
    room = {
        "prompt_tokens": 1200, "observation_tokens": 90, "step_tokens": 12, "max_tokens": 1600,
        "max_calls": 3,
    }  # fmt: skip
    done = run(
        work, "--config=tests/small.py", "--config.stages=('rl',)", "--config.method=grpo",
        "--config.protocol=chat_tools", f"--config.model.folder={folder}",
        "--config.task.name=dataset", f"--config.task.dataset.train={tmp_path / 'q.jsonl'}",
        f"--config.task.dataset.eval={tmp_path / 'q.jsonl'}", "--config.rl.buckets=(1600,)",
        f"--config.task.dataset.documents={tmp_path / 'c.jsonl'}", "--config.rl.micro_tokens=6400",
        "--config.rollout.n_hybrid=0",
        *(f"--config.rollout.{key}={value}" for key, value in room.items()),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    rows = [json.loads(line) for line in (work / "metrics.jsonl").open()]
    assert [row["step"] for row in rows] == [0, 1]
    assert all(row["loss/grad_norm"] > 0 and row["tools/search"] > 0 for row in rows)
    assert all(0 < row["reward/accuracy"] < 1 for row in rows)

"""Another config in minutes: all its stages, data and services, with small numbers.

    python -m rapo_jax.main --config=configs/smoke.py:qwen7b --workdir=runs/smoke \\
        --config.model.folder=FOLDER

After the colon is a config of this folder, or the path of a config file. FOLDER is any small model,
such as Qwen/Qwen2.5-0.5B-Instruct. Rollouts, texts, updates, evaluation and suites shrink; nothing
grows. The mesh uses all devices of one machine, 1, 2, 4 or 8, without tensor parallelism. Answers
are cut short, so scores say nothing about the model.
"""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

from ml_collections import ConfigDict

STEP, RESULT, PROMPT = 48, 64, 768
"""Most tokens of a step of the policy, of a tool result or a trace, and of a prompt."""
QUESTIONS = 8
"""Of a step and of an evaluation: a multiple of the devices."""

FILE_RECORDS = 64
"""Of each file of traces: all of them would be embedded."""


def get_config(other: str = "qwen7b") -> ConfigDict:
    c = _module(other).get_config()
    scripted = c.task.name in ("chains", "pairs")  # their agents make that many calls
    calls = c.rollout.max_calls if scripted else min(c.rollout.max_calls, 2)
    _cut(
        c.rollout,
        questions=QUESTIONS,
        group_size=2,
        n_hybrid=1,
        max_calls=calls,
        prompt_tokens=PROMPT,
        step_tokens=STEP,
        observation_tokens=RESULT,
        retrieved_tokens=RESULT,
    )
    r = c.rollout
    length = r.prompt_tokens + (calls + 1) * (r.step_tokens + r.retrieved_tokens)
    _cut(r, max_tokens=length + calls * r.observation_tokens)
    r.slots = 0  # all of the few rollouts at a time
    _cut(c.sft, steps=20, batch=8, examples=128, warmup=5)
    c.sft.update(gate_one_hop=0.0, gate_follow=0.0)
    _cut(c.buffer, questions=QUESTIONS, samples=2, keep=2)
    c.buffer.file_records = min(c.buffer.file_records or FILE_RECORDS, FILE_RECORDS)
    _cut(c.buffer.endpoint, max_calls_total=200, max_tokens_total=200_000)
    _cut(c.rl, steps=2, mini_batches=2, epochs=1, micro_tokens=4 * r.max_tokens)
    c.rl.buckets = (r.max_tokens,)
    c.evaluate.update(every=0, limit=QUESTIONS, rows=QUESTIONS)
    _cut(c.evaluate, samples=2)
    c.checkpoint.every = 1
    c.log.update(trajectories=True, trajectory_every=1)
    c.mesh.update(data=1, fsdp=-1, tensor=1)
    return c


def _cut(group: ConfigDict, **most: int) -> None:
    """Lowers the keys of a group that are above these values."""
    group.update({key: min(group[key], value) for key, value in most.items()})


def _module(name: str) -> ModuleType:
    path = Path(name if name.endswith(".py") else Path(__file__).with_name(f"{name}.py")).resolve()
    if not path.is_file():
        known = sorted({x.stem for x in Path(__file__).parent.glob("[a-z]*.py")} - {"smoke"})
        print(
            f"error: --config=configs/smoke.py:{name}: there is no such config; after the colon, "
            f"name one of {', '.join(known)} or the path of a file",
            file=sys.stderr,
        )
        raise SystemExit(2)
    sys.path.append(str(path.parent))  # user code may be beside the file
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module

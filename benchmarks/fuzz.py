"""Feeds random bytes to what reads texts and files: each may raise ValueError and nothing else.

    python benchmarks/fuzz.py split_steps 60

Guided by coverage with atheris where it is installed (`pip install atheris`), else by hypothesis.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

try:
    import atheris
except ImportError:
    atheris = None

GUIDED = atheris and __name__ == "__main__"
with atheris.instrument_imports(include=["rapo_jax"]) if GUIDED else contextlib.nullcontext():
    from rapo_jax.buffer.messages import tagged_text
    from rapo_jax.config import ModelSettings
    from rapo_jax.io.chat import read_reply
    from rapo_jax.io.http import HttpFailure
    from rapo_jax.io.jsonl import LineReport
    from rapo_jax.model.hf_config import settings_from_hf
    from rapo_jax.model.hf_files import INDEX_FILE, Tensors
    from rapo_jax.report.runs import load_run
    from rapo_jax.report.trajectories import choose_trajectories
    from rapo_jax.scoring.answers import score_answer
    from rapo_jax.scoring.judge import read_verdict
    from rapo_jax.tasks.dataset_files import read_user_file
    from rapo_jax.tasks.reward import outcome_reward
    from rapo_jax.text.protocol import neutralise, parse_step, split_steps, without_retrieved

SLOWEST_S = 10
"""An input of at most LONGEST bytes that takes longer is a finding."""
LONGEST = 4096
FOLDER = Path(tempfile.gettempdir()) / f"rapo_fuzz_{os.getpid()}"


def _folder(*parts: str) -> Path:
    """A folder of this process to write inputs into; others may clear the temporary ones."""
    path = FOLDER.joinpath(*parts)
    path.mkdir(parents=True, exist_ok=True)
    return path


class Fuzzed(NamedTuple):
    target: str
    engine: str
    inputs: int
    problem: str
    """The exception and the input that caused it; '' for none."""


def text_of(data: bytes) -> str:
    return data.decode("utf-8", "surrogateescape")


def protocol(data: bytes) -> None:
    text = text_of(data)
    split_steps(text, ("calc",))
    without_retrieved(text)
    parse_step(text, ("calc",))
    assert "</result>" not in neutralise(text)


def rewards(data: bytes) -> None:
    text, _, gold = text_of(data).partition("\0")
    assert -1.0 <= outcome_reward(text, (gold,)) <= 1.0
    for rule in ("strict", "official"):
        score_answer(text, (gold,), rule=rule)
        read_verdict(text, rule=rule)


def json_lines(data: bytes) -> None:
    path = _folder() / "rows.jsonl"
    path.write_bytes(data)
    list(read_user_file(path, malformed="skip", report=LineReport(str(path))))


def tables(data: bytes) -> None:
    suffix = (".parquet", ".csv", ".json")[len(data) % 3]
    path = _folder() / f"rows{suffix}"
    path.write_bytes(b"PAR1" + data + b"PAR1" if suffix == ".parquet" else data)
    list(read_user_file(path, malformed="skip", report=LineReport(str(path))))


def model_folder(data: bytes) -> None:
    config, _, index = data.partition(b"\0")
    (_folder() / "config.json").write_bytes(config)
    (FOLDER / INDEX_FILE).write_bytes(index)
    with contextlib.suppress(ValueError):
        settings_from_hf(FOLDER, base=BASE)
    Tensors(FOLDER)


def safetensors_file(data: bytes) -> None:
    folder = _folder("single")
    (folder / "model.safetensors").write_bytes(len(data).to_bytes(8, "little") + data)
    Tensors(folder)


def replies(data: bytes) -> None:
    value = json.loads(data)
    with contextlib.suppress(ValueError, HttpFailure):
        read_reply(value)
    tagged_text(value if isinstance(value, list) else [value])


def workdir(data: bytes) -> None:
    parts = [*data.split(b"\0"), b"", b"", b""]
    names = ("config.json", "result.json", "metrics.jsonl", "trajectories.jsonl")
    for name, part in zip(names, parts, strict=False):
        (_folder() / name).write_bytes(part)
    load_run(FOLDER)
    choose_trajectories(FOLDER / "trajectories.jsonl", 10)


BASE = ModelSettings()
TARGETS: dict[str, tuple[Callable[[bytes], None], list[bytes]]] = {
    "protocol": (protocol, [b"<think>a</think><calc>1</calc><result> 2</result><answer>b"]),
    "rewards": (rewards, [b"<think>a</think><answer>\\boxed{\\frac{1}{2}}</answer>\0" + b"0.5"]),
    "json_lines": (json_lines, [b'{"id": "1", "question": "Who?", "answers": ["a", 2]}\n[1]\n']),
    "tables": (tables, [b"question,answer\nWho?,a\n", b'[{"question": "Who?", "answer": 1.0}]']),
    "model_folder": (model_folder, [
        b'{"model_type": "llama", "vocab_size": 9, "hidden_size": 8, "intermediate_size": 8,'
        b'"num_hidden_layers": 1, "num_attention_heads": 2, "rope_scaling": {"rope_type": "llama3",'
        b'"factor": 2.0}}\0{"weight_map": {"a": "b.safetensors"}}',
    ]),
    "safetensors_file": (safetensors_file, [
        b'{"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}',
    ]),
    "replies": (replies, [
        b'{"choices": [{"message": {"content": [{"text": "a"}]}, "finish_reason": "stop"}]}',
        b'[{"role": "assistant", "content": "a", "tool_calls": [{"function": {"name": "search",'
        b'"arguments": "{\\"query\\": \\"b\\"}"}}]}, {"role": "tool", "content": "c"}]',
    ]),
    "workdir": (workdir, [
        b'{"method": "rapo", "seed": 1}\0{"accuracy_after": 0.5}\0{"stage": "rl", "step": 1}\0'
        b'{"step": 1, "segments": [{"source": "RETRIEVED"}]}',
    ]),
}  # fmt: skip


def tried(target: Callable[[bytes], None], data: bytes) -> None:
    """Runs the target; what it may raise is no finding."""
    with contextlib.suppress(ValueError):
        target(data)


def with_atheris(name: str, seconds: int) -> None:
    """Does not return: libFuzzer ends the process."""
    target, seeds = TARGETS[name]
    corpus = _folder("corpus")
    for i, seed in enumerate(seeds):
        (corpus / str(i)).write_bytes(seed)
    limits = [f"-max_total_time={seconds}", f"-timeout={SLOWEST_S}", f"-max_len={LONGEST}"]
    quiet = ["-print_final_stats=1", f"-artifact_prefix={FOLDER}/", str(corpus)]
    atheris.Setup([sys.argv[0], *limits, *quiet], lambda data: tried(target, data))
    atheris.Fuzz()


LEAST = 20
"""Inputs that hypothesis tries, however little time there is."""


def with_hypothesis(name: str, seconds: int) -> int:
    from hypothesis import HealthCheck, given, settings
    from hypothesis import strategies as st

    target, seeds = TARGETS[name]
    until, count = time.monotonic() + seconds, 0
    pieces = st.one_of(st.binary(max_size=64), st.sampled_from(seeds), st.text().map(str.encode))

    @settings(max_examples=100, deadline=None, database=None, suppress_health_check=HealthCheck)
    @given(st.lists(pieces, max_size=8))
    def run(parts: list[bytes]) -> None:
        nonlocal count
        if time.monotonic() < until or count < LEAST:
            count += 1
            tried(target, b"".join(parts))

    while time.monotonic() < until or count < LEAST:
        run()
    return count


def run_all(folder: Path, *, seconds: float) -> Iterator[Fuzzed]:
    """Every target in a process of its own, for an equal share of the time."""
    share = max(int(seconds / len(TARGETS)), 5)
    for name in TARGETS:
        command = [sys.executable, __file__, name, str(share)]
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
        output = done.stdout + done.stderr
        if atheris:
            units = re.search(r"number_of_executed_units:\s*(\d+)", output)
            inputs, engine = int(units.group(1)) if units else 0, "atheris"
        else:
            inputs, engine = int((done.stdout or "0").split()[-1]), "hypothesis"
        problem = "" if done.returncode == 0 else " ".join(output[-1500:].split())
        yield Fuzzed(name, engine, inputs, problem.replace("|", "/"))


if __name__ == "__main__":
    name, seconds = sys.argv[1], int(sys.argv[2])
    if atheris:
        with_atheris(name, seconds)
    print(with_hypothesis(name, seconds))

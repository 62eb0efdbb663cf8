"""Compares rapo_jax with google-tunix and with transformers and TRL on a CPU, at equal weights.

    python benchmarks/peers.py                                # everything, about half an hour
    python benchmarks/peers.py --only=decode --peers=tunix --rounds=3

Each peer is installed into a virtual environment of its own (--envs) from benchmarks/peers/*.txt.
All frameworks run at once, a process each, and are asked for one call at a time in turns; a median
is that of --rounds calls after one that compiles. Greedy tokens must be equal. Every measurement is
printed as a line of JSON and appended to --out; at the end comes a table in Markdown.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple, TypedDict

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax
import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.peer_process import WORKERS, Worker, make_environment
from benchmarks.random_model import random_params, write_folder
from rapo_jax.config import ModelSettings
from rapo_jax.model.sharding import make_mesh
from rapo_jax.plan.models import PUBLISHED
from rapo_jax.text.tokens import load_tokens

PEERS = {"tunix": "google-tunix", "trl": "transformers, TRL"}
FRAMEWORKS = {"rapo": "rapo_jax"} | PEERS
"""Name -> title."""


class Record(TypedDict, total=False):
    """A line of --out: one framework in one measurement."""

    measured: str
    framework: str
    error: str
    """Why it was not measured; absent if it was."""
    cpu_seconds: list[float]
    """Of all threads of the process, for each call."""
    wall_seconds: list[float]
    equal_tokens: float
    """Share of the greedy tokens that equal those of rapo_jax."""
    versions: dict[str, str]
    threads: int
    cpu: str
    date: str
    commit: str


MODELS = {
    "4.5M": ModelSettings(
        vocab=2048, width=256, ffn=1024, layers=4, heads=8, kv_heads=4, head_width=32,
        init_scale=0.1,
    ),
    "Qwen2.5-0.5B": PUBLISHED["Qwen2.5-0.5B"](ModelSettings()),
}  # fmt: skip
"""Random weights of these shapes, in float32, Qwen2's architecture."""


class Measurement(NamedTuple):
    kind: str
    model: str
    prompts: int
    new_tokens: int
    group: int = 1
    """Rollouts of a prompt."""
    width: int = 64
    """Tokens of a prompt."""

    @property
    def name(self) -> str:
        rows = f"{self.prompts} × {self.group}" if self.group > 1 else f"{self.prompts}"
        what = {"decode": "decode", "grpo": "GRPO step"}[self.kind]
        return f"{what}, {self.model}, {rows} rows of {self.width} + {self.new_tokens}"


MEASUREMENTS = (
    Measurement("decode", "4.5M", 8, 128),
    Measurement("decode", "4.5M", 32, 128),
    Measurement("decode", "Qwen2.5-0.5B", 8, 32),
    Measurement("grpo", "4.5M", 8, 128, group=4),
)


def make_model(folder: Path, model: ModelSettings) -> None:
    """A Hugging Face folder of random float32 weights, the same ones each time."""
    params = random_params(model, make_mesh(jax.devices()[:1]))
    write_folder(folder, model, params, dtype="float32")


def workload(folder: Path, m: Measurement) -> dict[str, object]:
    """The worker's `Workload`: prompts of digits, each of which is a token."""
    tokens = load_tokens(folder / "tokenizer")
    room = m.width - len(tokens.prompt_ids("", ""))
    digits_QX = np.random.default_rng(0).integers(0, 10, (m.prompts, room))
    questions = ["".join(map(str, digits_X)) for digits_X in digits_QX]
    prompts = [tokens.prompt_ids("", question) for question in questions]
    assert {len(prompt) for prompt in prompts} == {m.width}
    return {
        "kind": m.kind,
        "folder": str(folder),
        "questions": questions,
        "prompts": prompts,
        "new_tokens": m.new_tokens,
        "group": m.group,
    }


def measure(
    m: Measurement, folder: Path, pythons: Mapping[str, Path], *, rounds: int, threads: int
) -> dict[str, Record]:
    """A record for each framework of `pythons`, after rounds of one call of each."""
    load = workload(folder, m)
    workers = {
        name: Worker(name, python, load, threads=threads) for name, python in pythons.items()
    }
    records: dict[str, Record] = {
        name: {"cpu_seconds": [], "wall_seconds": [], **worker.loaded}
        for name, worker in workers.items()
    }
    tokens: dict[str, list[list[int]]] = {}
    for turn in range(rounds + 1):
        for name, record in records.items():
            if "error" in record:
                continue
            answer = workers[name].ask()
            error = answer.get("error") or wrong_sizes(m, answer["tokens"])
            if error:
                record["error"] = error
                continue
            tokens[name] = answer["tokens"]
            if turn:
                record["cpu_seconds"].append(answer["cpu_seconds"])
                record["wall_seconds"].append(answer["wall_seconds"])
    for worker in workers.values():
        worker.close()
    if m.kind == "decode" and "rapo" in tokens:
        for name in tokens:
            records[name]["equal_tokens"] = equal_share(tokens["rapo"], tokens[name])
    return records


def wrong_sizes(m: Measurement, tokens: Sequence[Sequence[int]]) -> str:
    """An error if a call did not sample as many tokens as it was asked for, else ''."""
    wanted, lengths = [m.new_tokens] * m.prompts * m.group, list(map(len, tokens))
    return "" if lengths == wanted else f"sampled {lengths} tokens, expected {wanted}"


def equal_share(left: Sequence[Sequence[int]], right: Sequence[Sequence[int]]) -> float:
    return float(np.mean(np.asarray(left) == np.asarray(right)))


def machine() -> Record:
    """Processor, date and commit."""
    info = Path("/proc/cpuinfo").read_text()
    names = [line.partition(": ")[2] for line in info.splitlines() if line.startswith("model name")]
    cpu = f"{names[0] if names else 'unknown'}, {len(os.sched_getaffinity(0))} cores"
    git = ["git", "-C", str(WORKERS), "describe", "--always", "--dirty"]
    commit = subprocess.run(git, capture_output=True, text=True, check=False).stdout.strip()
    date = datetime.datetime.now(datetime.UTC).date().isoformat()
    return {"cpu": cpu, "date": date, "commit": commit or "unknown"}


def table(records: Sequence[Record]) -> list[str]:
    """Markdown: median CPU-seconds of a call, and how many times faster than the faster peer."""
    head = ("CPU-seconds of a call", *FRAMEWORKS.values(), "faster than the faster peer")
    lines = [head, ("---",) * len(head)]
    for name in dict.fromkeys(record["measured"] for record in records):
        median = {
            record["framework"]: statistics.median(record["cpu_seconds"])
            for record in records
            if record["measured"] == name and "error" not in record
        }
        cells = [f"{median[f]:.3g}" if f in median else "not measured" for f in FRAMEWORKS]
        peers = [median[f] for f in PEERS if f in median]
        known = peers and "rapo" in median
        lines.append((name, *cells, f"{min(peers) / median['rapo']:.2f} ×" if known else "-"))
    return ["| " + " | ".join(cells) + " |" for cells in lines]


def unequal(records: Sequence[Record]) -> list[str]:
    """A line for each peer whose greedy tokens differ from rapo_jax's."""
    return [
        f"{record['measured']}: {record['equal_tokens']:.2%} of the greedy tokens of "
        f"{FRAMEWORKS[record['framework']]} equal those of rapo_jax; in float32 all must, "
        "unless two logits are equal up to rounding: then other weights or prompts decide"
        for record in records
        if record.get("equal_tokens", 1.0) != 1.0
    ]


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", choices=("decode", "grpo"), help="measure this alone")
    parser.add_argument("--peers", default=",".join(PEERS), help="names, separated by commas")
    parser.add_argument("--rounds", default=5, type=int, help="calls of each framework")
    parser.add_argument("--threads", default=1, type=int, help="cores of each process")
    parser.add_argument("--envs", default=Path("runs/peers-envs"), type=Path)
    parser.add_argument("--out", default=Path("runs/peers.jsonl"), type=Path)
    given = parser.parse_args(arguments)
    given.peers = list(filter(None, given.peers.split(",")))
    for name in given.peers:
        if name not in PEERS:
            parser.error(f"--peers={name}: choose of {', '.join(PEERS)}")
    if given.rounds < 1 or given.threads < 1:
        parser.error("--rounds and --threads: at least 1")
    return given


def main(arguments: Sequence[str] | None = None) -> None:
    given = parse(arguments)
    pythons = {"rapo": Path(sys.executable)}
    failed: dict[str, Record] = {}
    for name in given.peers:
        try:
            pythons[name] = make_environment(given.envs / name, WORKERS / f"{name}.txt")
        except (RuntimeError, OSError, subprocess.CalledProcessError) as error:
            failed[name] = {"error": f"not installed: {error}"}
    given.out.parent.mkdir(parents=True, exist_ok=True)
    info: Record = machine() | {"threads": given.threads}
    records: list[Record] = []
    with tempfile.TemporaryDirectory() as made, given.out.open("a") as out:
        for m in MEASUREMENTS:
            if given.only not in (None, m.kind):
                continue
            folder = Path(made) / m.model
            if not folder.exists():
                make_model(folder, MODELS[m.model])
            how = {"rounds": given.rounds, "threads": given.threads}
            for name, record in (measure(m, folder, pythons, **how) | failed).items():
                records.append({"measured": m.name, "framework": name, **record, **info})
                line = json.dumps(records[-1], ensure_ascii=False)
                print(line, file=out, flush=True)
                print(line, flush=True)
    print("\n".join(["", *table(records)]))
    if lines := unequal(records):
        raise SystemExit("\n".join(lines))


if __name__ == "__main__":
    main()

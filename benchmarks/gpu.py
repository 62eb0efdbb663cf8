"""What one GPU makes of the shapes of Qwen2.5 with random weights, by the run's own programs.

    python benchmarks/gpu.py [--model=1.5b,7b] [--full] [--output=gpu.json]
    python benchmarks/gpu.py --model=tiny          # the same code on any device, in seconds

For each model: prompts read and tokens decoded by number of rows, a rollout that calls tools, the
copy to sample with, and updates at 4k tokens; all weights of 1.5B, adapters of 7B. Prints a table
in Markdown; docs/gpu.md says what its columns mean. What does not fit says so and the rest goes on.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

os.environ.setdefault("XLA_PYTHON_CLIENT_MEM_FRACTION", "0.9")  # as launch/gpu.sh

import jax
import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.gpu_sizes import (
    FULL_FINE_TUNE,
    PUBLISHED_NAMES,
    SIZES,
    Row,
    Sizes,
    chip_of,
    decode_bytes,
    read_flops,
    settings_of,
    table,
    trained_flops,
)
from benchmarks.gpu_world import Play, make_play, plain_boundary
from benchmarks.random_model import random_params
from benchmarks.timing import Timed, interleaved
from rapo_jax.model.sharding import make_mesh, place, replicated, rows
from rapo_jax.rollout.loop import RolloutInputs, parts
from rapo_jax.tasks.schema import Question
from rapo_jax.train.optimizer import make_optimizer
from rapo_jax.train.policy import start_state
from rapo_jax.train.update import Updater, rapo_loss
from rapo_jax.types import Batch, Source, Span

RANK = 32
OPTIMIZER = {"clip_norm": 1.0, "b1": 0.9, "b2": 0.999, "eps": 1e-8, "weight_decay": 0.0}


class Bench:
    """One model on one device: its training state, and the rows of the table so far."""

    def __init__(self, name: str, sizes: Sizes, device: jax.Device) -> None:
        self.name, self.sizes, self.device = name, sizes, device
        self.chip = chip_of(device)
        self.s, self.model = settings_of(name, adapters=0 if name in FULL_FINE_TUNE else RANK)
        self.mesh = make_mesh([device])
        self.optimizer = make_optimizer(lambda _: 1e-6, **OPTIMIZER)
        run: Any = SimpleNamespace(mesh=self.mesh, model=self.model)
        self.state = start_state(run, random_params(self.model, self.mesh), self.optimizer)
        self.rows: list[Row] = []

    def tell(self, measured: str, timed: Timed, **numbers: Any) -> None:
        """Adds a row; `bytes` or `flops` are what the work cannot do without."""
        work, of, peak = 0.0, "-", None
        for kind, rate, name in (("bytes", "bandwidth", "bandwidth"), ("flops", "flops", "FLOP/s")):
            if kind in numbers:
                work, of = numbers.pop(kind), name
                peak = getattr(self.chip, rate) if self.chip else None
        row = Row(self.name, measured, **numbers, seconds=tuple(timed.seconds), of=of)
        if peak and timed.seconds:
            row = row._replace(share=work / peak / row.median)
        memory = (self.device.memory_stats() or {}).get("peak_bytes_in_use")
        note = ", ".join(filter(None, (row.note, timed.failure)))
        self.rows.append(row._replace(peak=memory, note=note))
        print("| " + " | ".join(self.rows[-1].cells()) + " |", file=sys.stderr, flush=True)

    def measure(self, workdir: Path) -> list[Row]:
        play = make_play(self.model, self.s, self.sizes, self.mesh, workdir)
        weights = self.copy(play)
        self.decode(weights)
        self.rollout(play, weights)
        del weights  # as in a run: the update needs the room
        self.update()
        return self.rows

    def copy(self, play: Play) -> Any:
        held: dict[str, Any] = {}

        def load() -> None:
            held.clear()
            held["weights"] = jax.block_until_ready(play.sampler.load(self.state.params))

        timed = interleaved({"copy": load}, repeats=self.sizes.repeats)["copy"]
        if timed.failure:
            raise SystemExit(f"{self.name}: the weights and their copy do not fit on this device")
        moved = sum(x.nbytes for x in jax.tree.leaves((self.state.params, held["weights"])))
        self.tell("copy to sample with", timed, rows=0, tokens=0, bytes=moved)
        return held["weights"]

    def decode(self, weights: Any) -> None:
        """Prompts alone, and prompts with `ticks` tokens behind them: decoding is what is more."""
        z, model = self.sizes, self.model
        r = dataclasses.replace(
            self.s.rollout,
            step_tokens=z.ticks,
            observation_tokens=z.ticks,
            retrieved_tokens=z.ticks,
            max_tokens=z.prompt + z.ticks,
        )
        step = parts(model, r, plain_boundary(model), lambda key_BE: key_BE)
        opened = jax.jit(lambda params, prompt: step.open(params, prompt, 1))
        decoded = jax.jit(
            lambda params, inputs, prompt: (
                step.think(params, inputs, step.open(params, prompt, 1))[0].trajectory.length_B
            )
        )
        works: dict[str, Callable[[], Any]] = {}
        for count in z.batches:
            prompt, inputs = self.prompt(count), self.plan(count)
            works[f"read {count}"] = lambda prompt=prompt: (
                jax.block_until_ready(opened(weights, prompt)) and None
            )
            works[f"both {count}"] = lambda prompt=prompt, inputs=inputs: np.asarray(
                decoded(weights, inputs, prompt)
            )
        timed = interleaved(works, repeats=z.repeats)
        for count in z.batches:
            read, both = timed[f"read {count}"], timed[f"both {count}"]
            flops = count * z.prompt * read_flops(model, width=z.prompt)
            self.tell(
                "read prompts", read, rows=count, tokens=z.prompt, total=count * z.prompt,
                flops=flops,
            )  # fmt: skip
            failure = read.failure or both.failure
            fresh_B = np.zeros(1) if failure else both.found - z.prompt
            ticks = int(fresh_B.max())
            spent = [] if failure else list(np.subtract(both.seconds, read.seconds))
            self.tell(
                "decode", Timed(spent, None, failure), rows=count, tokens=ticks or z.ticks,
                total=int(fresh_B.sum()),
                bytes=decode_bytes(model, rows=count, prompt=z.prompt, ticks=ticks or z.ticks),
            )  # fmt: skip

    def prompt(self, count: int) -> Span:
        rng = np.random.default_rng(0)
        token_BX = rng.integers(0, self.model.vocab, (count, self.sizes.prompt), np.int32)
        span = Span(token_BX, np.full(count, self.sizes.prompt, np.int32))
        return place(span, rows(self.mesh))

    def plan(self, count: int) -> RolloutInputs:
        zero = np.float32(0)
        inputs = RolloutInputs(
            key=jax.random.key(0),
            hybrid_B=np.zeros(count, bool),
            probability=zero,
            noise=zero,
            temperature=np.float32(1),
            last_retrieval=np.int32(0),
        )
        return place(inputs, replicated(self.mesh))

    def rollout(self, play: Play, weights: Any) -> None:
        """A run's rollout with search calls; and which share of it the host had."""
        z = self.sizes
        questions = [Question(str(n), "who is it?", ("it",), "", "") for n in range(z.questions)]

        def sample() -> tuple[int, float]:
            started = time.perf_counter()
            tape = play.sampler.sample(
                weights,
                jax.random.key(0),
                questions,
                group_size=z.group,
                n_hybrid=0,
                temperature=1.0,
            )
            spent = time.perf_counter() - started
            host = play.environment.take_counts().get("seconds", 0.0)
            return int((tape.source_BT == Source.POLICY).sum()), host / spent

        timed = interleaved({"rollout": sample}, repeats=z.repeats)["rollout"]
        total, host = timed.found or (0, None)
        count = z.questions * z.group
        self.tell("rollout", timed, rows=count, tokens=total // count, total=total)
        self.rows[-1] = self.rows[-1]._replace(share=host, of="its time, by the host")

    def update(self) -> None:
        """An optimizer step on rows of full width, with each of `remats`, in turns."""
        z, model = self.sizes, self.model
        batch, length_B = self.batch()

        def work(remat: str) -> Callable[[], Any]:
            updater = Updater(
                rapo_loss(dataclasses.replace(model, remat=remat), self.s.rl),
                self.optimizer,
                self.state,
                mesh=self.mesh,
                buckets=(z.update_width,),
                micro_tokens=z.micro_rows * z.update_width,
            )

            def update() -> float:
                self.state, metrics = updater.update(self.state, batch, length_B, None)
                return metrics["loss"]

            return update

        works = {remat: work(remat) for remat in z.remats}
        total = z.update_rows * z.update_width
        flops = total * trained_flops(model, width=z.update_width)
        trained = f"adapters of rank {model.lora.rank}" if model.lora.rank else "all weights"
        for remat, timed in interleaved(works, repeats=z.repeats).items():
            self.tell(
                "update", timed, rows=z.update_rows, tokens=z.update_width, total=total,
                flops=flops, note=f"{trained}, remat={remat}, {z.micro_rows} rows at a time",
            )  # fmt: skip

    def batch(self) -> tuple[Batch, np.ndarray]:
        z, rng = self.sizes, np.random.default_rng(0)
        shape = (z.update_rows, z.update_width)
        token_BT = rng.integers(0, self.model.vocab, shape, np.int32)
        source_BT = np.where(np.arange(shape[1]) < shape[1] // 8, Source.PROMPT, Source.POLICY)
        old_logp_BT = np.full(shape, -np.log(self.model.vocab), np.float32)
        advantage_B = np.where(np.arange(shape[0]) % 2, 1, -1).astype(np.float32)
        batch = Batch(
            token_BT,
            np.broadcast_to(source_BT.astype(np.int32), shape),
            old_logp_BT,
            advantage_B,
            np.zeros(shape[0], np.float32),
        )
        return batch, np.full(shape[0], shape[1])


def driver_version() -> str:
    """As nvidia-smi tells it, '-' where there is none."""
    if not shutil.which("nvidia-smi"):
        return "-"
    asked = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    done = subprocess.run(asked, capture_output=True, text=True, check=False)
    return done.stdout.splitlines()[0].strip() if done.stdout.strip() else "-"


def main(arguments: list[str] | None = None) -> list[Row]:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="1.5b,7b", help=", ".join((*PUBLISHED_NAMES, "tiny")))
    parser.add_argument("--full", action="store_true", help="more batches, repetitions and remats")
    parser.add_argument("--output", type=Path, help="JSON file of everything that was measured")
    given = parser.parse_args(arguments)
    names = [name.strip().lower() for name in given.model.split(",")]
    for name in names:
        if name not in (*PUBLISHED_NAMES, "tiny"):
            parser.error(f"--model={name}: choose of {', '.join((*PUBLISHED_NAMES, 'tiny'))}")
    device = jax.devices()[0]
    about = {
        "device": device.device_kind,
        "driver": driver_version(),
        "jax": jax.__version__,
        "command": "python benchmarks/gpu.py " + " ".join(arguments or sys.argv[1:]),
    }
    found: list[Row] = []
    for name in names:
        sizes = SIZES["tiny" if name == "tiny" else "full" if given.full else "usual"]
        with tempfile.TemporaryDirectory() as folder:
            found += Bench(name, sizes, device).measure(Path(folder))
    print("\n".join([", ".join(f"{k} {v}" for k, v in about.items()), "", *table(found)]))
    if chip_of(device) is None:
        print(
            f"\n{device.device_kind}: its peaks are not known here, so there are no shares of them"
        )
    if given.output:
        rows_found = [row._asdict() | {"median": row.median} for row in found if row.seconds]
        failed = [row._asdict() for row in found if not row.seconds]
        given.output.write_text(json.dumps(about | {"rows": rows_found + failed}, indent=2) + "\n")
    return found


if __name__ == "__main__":
    main()

"""Measures decoding, rollouts and updates of random weights in the shapes of Qwen2.5, on one GPU.

    python benchmarks/gpu.py [--model=1.5b,7b] [--full] [--output=gpu.json]
    python benchmarks/gpu.py --model=tiny          # the same code on any device, in seconds

Prints a Markdown table (docs/gpu.md explains its columns), for each model: prompts read and tokens
decoded by number of rows, a rollout that calls tools, the sampling weights, and updates at 4k
tokens of all weights (up to 1.5B) or of adapters. A measurement that does not fit in memory is
noted in its row, and the others continue.
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
from functools import partial
from pathlib import Path
from types import SimpleNamespace

if "XLA_PYTHON_CLIENT_MEM_FRACTION" not in os.environ:  # the older name: jax refuses both
    os.environ.setdefault("XLA_CLIENT_MEM_FRACTION", "0.9")  # as launch/gpu.sh

import jax
import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.gpu_host import Host, make_host
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
from benchmarks.random_model import random_params
from benchmarks.timing import Timed, interleaved
from rapo_jax.config import OptimizerSettings, RlSettings
from rapo_jax.model.sharding import make_mesh, place, replicated, rows
from rapo_jax.plan.programs import byte_boundary
from rapo_jax.rollout.loop import parts
from rapo_jax.rollout.slots import RolloutInputs
from rapo_jax.run.policy import start_state
from rapo_jax.tasks.schema import Question
from rapo_jax.train.optimizer import make_optimizer
from rapo_jax.train.update import Updater, rapo_loss
from rapo_jax.types import Array, Batch, Params, Source, Span

RANK = 32


class Bench:
    """One model on one device: its training state, and the table's rows so far."""

    def __init__(self, name: str, sizes: Sizes, device: jax.Device) -> None:
        self.name, self.sizes, self.device = name, sizes, device
        self.chip = chip_of(device)
        self.s, self.model = settings_of(name, adapters=0 if name in FULL_FINE_TUNE else RANK)
        self.mesh = make_mesh([device])
        self.optimizer = make_optimizer(OptimizerSettings(), lambda _: 1e-6)
        run = SimpleNamespace(mesh=self.mesh, model=self.model)
        self.state = start_state(run, random_params(self.model, self.mesh), self.optimizer)
        self.rows: list[Row] = []

    def add(self, row: Row, timed: Timed, *, bytes: float = 0, flops: float = 0) -> None:
        """Completes and prints a row; `bytes` or `flops` are the least that the work needs."""
        rate, of = ("bandwidth", "bandwidth") if bytes else ("flops", "FLOP/s")
        row = row._replace(model=self.name, seconds=tuple(timed.seconds))
        if bytes or flops:
            row = row._replace(of=of)
            if self.chip and timed.seconds:
                least = (bytes or flops) / getattr(self.chip, rate)
                row = row._replace(share=least / row.median)
        memory = (self.device.memory_stats() or {}).get("peak_bytes_in_use")
        note = ", ".join(filter(None, (row.note, timed.failure)))
        self.rows.append(row._replace(peak=memory, note=note))
        print("| " + " | ".join(self.rows[-1].cells()) + " |", file=sys.stderr, flush=True)

    def measure(self, workdir: Path) -> list[Row]:
        host = make_host(self.model, self.s, self.sizes, self.mesh, workdir)
        weights = self.copy(host)
        self.decode(weights)
        self.rollout(host, weights)
        del weights  # as in a run: the update needs its memory
        self.update()
        return self.rows

    def copy(self, host: Host) -> Params:
        weights: list[Params] = []

        def load() -> None:
            weights.clear()
            weights.append(jax.block_until_ready(host.sampler.load(self.state.params)))

        timed = interleaved({"copy": load}, repeats=self.sizes.repeats)["copy"]
        if timed.failure:
            raise SystemExit(f"{self.name}: the weights and their copy do not fit on this device")
        moved = sum(x.nbytes for x in jax.tree.leaves((self.state.params, weights)))
        self.add(Row("sampling weights"), timed, bytes=moved)
        return weights[0]

    def decode(self, weights: Params) -> None:
        """Times prompts with and without `ticks` decoded tokens; decoding is the difference."""
        z, model = self.sizes, self.model
        r = dataclasses.replace(
            self.s.rollout,
            step_tokens=z.ticks,
            max_tokens=z.prompt + z.ticks,
        )
        turn = parts(model, r, byte_boundary(model.vocab), lambda key_UE: key_UE, slots=0)
        open_slots = partial(turn.open, group_size=1, tree_rows=1)
        opened = jax.jit(open_slots)

        @jax.jit
        def decoded(params: Params, inputs: RolloutInputs, prompt: Span) -> Array:
            slots = open_slots(params, prompt)
            return turn.think(params, inputs, slots).trajectory.length_B

        works: dict[str, Callable[[], object]] = {}
        for count in z.batches:
            prompt, inputs = self.prompt(count), self.inputs(count)
            works[f"read {count}"] = lambda prompt=prompt: (
                jax.block_until_ready(opened(weights, prompt)) and None
            )
            works[f"both {count}"] = lambda prompt=prompt, inputs=inputs: np.asarray(
                decoded(weights, inputs, prompt)
            )
        timed = interleaved(works, repeats=z.repeats)
        for count in z.batches:
            read, both = timed[f"read {count}"], timed[f"both {count}"]
            row = Row("read prompts", count, z.prompt, total=count * z.prompt)
            self.add(row, read, flops=row.total * read_flops(model, width=z.prompt))
            failure = read.failure or both.failure
            fresh_B = np.zeros(1) if failure else both.result - z.prompt
            ticks = int(fresh_B.max()) or z.ticks
            spent = [] if failure else list(np.subtract(both.seconds, read.seconds))
            self.add(
                Row("decode", count, ticks, total=int(fresh_B.sum())),
                Timed(spent, None, failure),
                bytes=decode_bytes(model, rows=count, prompt=z.prompt, ticks=ticks),
            )

    def prompt(self, count: int) -> Span:
        rng = np.random.default_rng(0)
        token_BX = rng.integers(0, self.model.vocab, (count, self.sizes.prompt), np.int32)
        span = Span(token_BX, np.full(count, self.sizes.prompt, np.int32))
        return place(span, rows(self.mesh))

    def inputs(self, count: int) -> RolloutInputs:
        zero = np.float32(0)
        inputs = RolloutInputs(
            key=jax.random.key(0),
            row_B=np.arange(count, dtype=np.int32),
            hybrid_B=np.zeros(count, bool),
            probability=zero,
            noise=zero,
            temperature=np.float32(1),
            last_retrieval=np.int32(0),
        )
        return place(inputs, replicated(self.mesh))

    def rollout(self, host: Host, weights: Params) -> None:
        """A run's rollout with search calls, and the host's share of its time."""
        z = self.sizes
        questions = [Question(str(n), "who is it?", ("it",), "", "") for n in range(z.questions)]

        def sample() -> tuple[int, float]:
            started = time.perf_counter()
            tape = host.sampler.sample(
                weights,
                jax.random.key(0),
                questions,
                group_size=z.group,
                n_hybrid=0,
                temperature=1.0,
            )
            spent = time.perf_counter() - started
            host_s = host.environment.take_counts()["seconds"]
            return int((tape.source_BT == Source.POLICY).sum()), host_s / spent

        timed = interleaved({"rollout": sample}, repeats=z.repeats)["rollout"]
        total, share = timed.result or (0, None)
        count = z.questions * z.group
        row = Row("rollout", count, total // count, total=total)
        self.add(row._replace(share=share, of="its time, by the host"), timed)

    def update(self) -> None:
        """An optimizer step on rows of full width, with each value of `remats` in turn."""
        z, model = self.sizes, self.model
        batch, length_B = self.batch()

        def work(remat: str) -> Callable[[], float]:
            updater = Updater(
                rapo_loss(dataclasses.replace(model, remat=remat), self.s.rl),
                self.optimizer,
                self.state,
                mesh=self.mesh,
                rl=RlSettings(
                    buckets=(z.update_width,), micro_tokens=z.micro_rows * z.update_width
                ),
            )

            def update() -> float:
                self.state, metrics = updater.update(self.state, batch, length_B, None)
                return float(metrics["loss"])

            return update

        works = {remat: work(remat) for remat in z.remats}
        row = Row("update", z.update_rows, z.update_width, total=z.update_rows * z.update_width)
        flops = row.total * trained_flops(model, width=z.update_width)
        trained = f"adapters of rank {model.lora.rank}" if model.lora.rank else "all weights"
        for remat, timed in interleaved(works, repeats=z.repeats).items():
            note = f"{trained}, remat={remat}, {z.micro_rows} rows at a time"
            self.add(row._replace(note=note), timed, flops=flops)

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
    """The driver's version by nvidia-smi; '-' without it."""
    if not shutil.which("nvidia-smi"):
        return "-"
    line = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    done = subprocess.run(line, capture_output=True, text=True, check=False)
    return done.stdout.splitlines()[0].strip() if done.stdout.strip() else "-"


def main(arguments: list[str] | None = None) -> list[Row]:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="1.5b,7b", help=", ".join((*PUBLISHED_NAMES, "tiny")))
    parser.add_argument("--full", action="store_true", help="more batches, repetitions and remats")
    parser.add_argument("--output", type=Path, help="JSON file to write all measurements to")
    given = parser.parse_args(arguments)
    names = [name.strip().lower() for name in given.model.split(",")]
    for name in names:
        if name not in (*PUBLISHED_NAMES, "tiny"):
            parser.error(f"--model={name}: choose of {', '.join((*PUBLISHED_NAMES, 'tiny'))}")
    device = jax.devices()[0]
    info = {
        "device": device.device_kind,
        "driver": driver_version(),
        "jax": jax.__version__,
        "command": "python benchmarks/gpu.py " + " ".join(arguments or sys.argv[1:]),
    }
    measured: list[Row] = []
    for name in names:
        sizes = SIZES["tiny" if name == "tiny" else "full" if given.full else "usual"]
        with tempfile.TemporaryDirectory() as folder:
            measured += Bench(name, sizes, device).measure(Path(folder))
    print("\n".join([", ".join(f"{k} {v}" for k, v in info.items()), "", *table(measured)]))
    if chip_of(device) is None:
        print(f"\n{device.device_kind}: its peak numbers are not known, so no share is computed")
    if given.output:
        done = [row._asdict() | {"median": row.median} for row in measured if row.seconds]
        failed = [row._asdict() for row in measured if not row.seconds]
        given.output.write_text(json.dumps(info | {"rows": done + failed}, indent=2) + "\n")
    return measured


if __name__ == "__main__":
    main()

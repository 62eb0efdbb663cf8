"""An open run with a finished cold start and buffer, to branch off from."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
import optax
import pytest

from rapo_jax.model.transformer import init_params
from rapo_jax.run.checkpoint import Checkpoints
from rapo_jax.run.metrics import Metrics
from rapo_jax.run.policy import start_state
from rapo_jax.run.run import Run, open_run
from rapo_jax.stages.buffer import build_buffer
from rapo_jax.train.sft import batch_of, demonstrations, draw_batch, examples_of, imitation_updater


@pytest.fixture(scope="session")
def trunk(small_settings, tmp_path_factory) -> Iterator[Run]:
    """A run on one device with the real tools, whose cold start writes the format most times."""
    folder = tmp_path_factory.mktemp("trunk")
    settings = small_settings(
        {
            "sft.folder": str(folder / "coldstart"),
            "buffer.folder": str(folder / "buffer"),
            "task.data_dir": str(folder / "data"),
            "rollout.driver": "host",  # its programs are small and kept by the compilation cache
            "rl.steps": 4,
        }
    )
    run = open_run(settings, folder, devices=jax.devices()[:1])
    imitate(run, steps=80)
    build_buffer(run)
    yield run
    run.close()


def imitate(run: Run, *, steps: int) -> None:
    """A cold start from numpy's random numbers: drawing parameters in jax compiles for longer."""
    rng = np.random.default_rng(0)

    def draw(path: Any, leaf: Any) -> np.ndarray:
        scale = "scale" in jax.tree_util.keystr(path)
        return np.float32(np.ones(leaf.shape) if scale else 0.1 * rng.standard_normal(leaf.shape))

    shapes = jax.eval_shape(lambda: init_params(run.model, jax.random.key(0)))
    optimizer = optax.adam(1e-2)
    state = start_state(run, jax.tree_util.tree_map_with_path(draw, shapes), optimizer)
    updater = imitation_updater(run, optimizer, state)
    examples = examples_of(run, demonstrations(run))
    for step in range(steps):
        index = draw_batch(examples, seed=0, step=step, batch=16)
        state, _ = updater.update(state, *batch_of(examples, index), None)
    store = Checkpoints(run.cold_start / "checkpoints", keep=1)
    store.save(steps, state, {})
    store.close()
    (run.cold_start / "done.json").write_text("{}")


@pytest.fixture
def branch(trunk, tmp_path, small_settings) -> Callable[..., Run]:
    """The same run in its own folder, with changes by dotted key that need no new program."""
    opened = []

    def make(changes: Mapping[str, Any] | None = None, *, name: str = "run") -> Run:
        workdir = tmp_path / name
        workdir.mkdir(exist_ok=True)
        trunk.environment.take_counts()  # what another test left
        user_tools = json.loads(json.dumps(dataclasses.asdict(trunk.settings)))
        config = {key: value for key, value in flat(user_tools) if key not in (changes or {})}
        run = dataclasses.replace(
            trunk,
            workdir=workdir,
            settings=small_settings(config | dict(changes or {})),
            metrics=Metrics(workdir, tensorboard=False),
        )
        opened.append(run)
        return run

    yield make
    for run in opened:
        run.metrics.close()


def flat(config: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in config.items():
        if isinstance(value, Mapping):
            yield from flat(value, f"{prefix}{key}.")
        else:
            yield prefix + key, tuple(value) if isinstance(value, list) else value


@pytest.fixture(scope="session")
def metrics_of() -> Callable[..., list[dict[str, Any]]]:
    """Lines of a workdir's metrics.jsonl; `timeless` leaves out what a clock says."""

    def read(workdir: Path, *, timeless: bool = False) -> list[dict[str, Any]]:
        rows = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
        if timeless:
            rows = [
                {k: v for k, v in row.items() if k.split("/")[0] not in ("time", "cpu")}
                for row in rows
            ]
        return rows

    return read

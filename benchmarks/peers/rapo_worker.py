"""rapo_jax as a worker of benchmarks/peers.py."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path
from types import SimpleNamespace

import jax
import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from worker import Call, Workload, even_share, serve

from configs import default
from rapo_jax.config import ModelSettings, Settings
from rapo_jax.config.read import read_settings
from rapo_jax.environment import Environment
from rapo_jax.model.hf_config import model_settings
from rapo_jax.model.sharding import make_mesh
from rapo_jax.run.policy import start_state
from rapo_jax.run.weights import read_folder
from rapo_jax.sampling.sampler import Sampler
from rapo_jax.tasks.schema import Question
from rapo_jax.text.tokens import Tokens, load_tokens
from rapo_jax.train.calibration import make_calibrator
from rapo_jax.train.loop import policy_optimizer
from rapo_jax.train.mini_batches import train_on_rollouts
from rapo_jax.train.update import Updater, rapo_loss
from rapo_jax.types import Batch, Trajectory


def settings_of(load: Workload) -> Settings:
    """configs/default.py with one step and no tool call, and one update of one micro-batch."""
    c = default.get_config()
    width = len(load.prompts[0]) + load.new_tokens
    c.method = "grpo"
    c.model.folder = load.folder
    c.rollout.update(
        questions=len(load.prompts),
        group_size=max(load.group, 2),
        n_hybrid=0,
        max_calls=0,
        prompt_tokens=len(load.prompts[0]),
        step_tokens=load.new_tokens,
        observation_tokens=4,  # the tags of one, which no row gets
        retrieved_tokens=1,
        max_tokens=width,
    )
    c.rl.update(mini_batches=1, buckets=(width,), micro_tokens=load.rows * width)
    return read_settings(c.to_dict())


def endless(tokens: Tokens, model: ModelSettings) -> Tokens:
    """The tokenizer without an end of sequence, and without tags that end a step."""
    return dataclasses.replace(tokens, bytes_V=[b"x"] * model.vocab, eos_ids=(model.vocab,))


class Policy:
    """The model of a workload and its sampler, on one device."""

    def __init__(self, load: Workload) -> None:
        self.load, self.settings = load, settings_of(load)
        self.model = model_settings(self.settings.model)
        self.mesh = make_mesh(jax.devices()[:1])
        r = self.settings.rollout
        tokens = endless(load_tokens(Path(load.folder) / "tokenizer"), self.model)
        self.sampler = Sampler(
            self.model,
            r,
            tokens,
            Environment(
                tokens,
                {},
                observation_tokens=r.observation_tokens,
                retrieved_tokens=r.retrieved_tokens,
            ),
            self.mesh,
            system="",
            embed=lambda key_BE: key_BE,
            query_shape=jax.ShapeDtypeStruct((1,), np.float32),
        )
        self.questions = [
            Question(str(n), text, (), "", "") for n, text in enumerate(load.questions)
        ]
        self.params = read_folder(self.model, self.mesh, dtype="float32")

    def sample(self, weights, key: jax.Array, *, temperature: float) -> Trajectory:
        return self.sampler.sample(
            weights,
            key,
            self.questions,
            group_size=self.load.group,
            n_hybrid=0,
            temperature=temperature,
        )

    def sampled(self, trajectory: Trajectory) -> list[np.ndarray]:
        start = len(self.load.prompts[0])
        return [
            token_T[start:length]
            for token_T, length in zip(trajectory.token_BT, trajectory.length_B, strict=True)
        ]


def decode(load: Workload) -> Call:
    policy = Policy(load)
    weights = jax.block_until_ready(policy.sampler.load(policy.params))
    policy.params = None  # a decode needs the sampling weights alone
    key = jax.random.key(0)
    return lambda: policy.sampled(policy.sample(weights, key, temperature=0.0))


def grpo(load: Workload) -> Call:
    """A step as `train.rl.rl_step` takes it, without metrics, on the same questions each time."""
    policy = Policy(load)
    s = policy.settings
    optimizer, _ = policy_optimizer(s)
    run = SimpleNamespace(mesh=policy.mesh, model=policy.model)
    state = start_state(run, policy.params, optimizer)
    policy.params = None  # the update donates them
    updater = Updater(
        rapo_loss(policy.model, s.rl),
        optimizer,
        state,
        mesh=policy.mesh,
        rl=s.rl,
    )
    calibrate = make_calibrator(s, num_steps=policy.sampler.most_steps)

    def step() -> list[np.ndarray]:
        nonlocal state
        key = jax.random.fold_in(jax.random.key(0), int(state.step))
        weights = policy.sampler.load(state.params)
        trajectory = policy.sample(weights, key, temperature=1.0)
        rows = policy.sampled(trajectory)
        reward_B = np.float32([even_share(row) for row in rows])
        calibration, _ = jax.device_get(calibrate(trajectory, reward_B))
        batch = Batch(
            trajectory.token_BT,
            trajectory.source_BT,
            trajectory.logp_BT,
            calibration.advantage_B,
            calibration.retrieved_share_B.astype(np.float32),
        )
        length_B = np.asarray(trajectory.length_B, np.int64)
        state, *_ = train_on_rollouts(updater, s, state, batch, length_B, key, None)
        jax.block_until_ready(state)
        return rows

    return step


if __name__ == "__main__":
    serve({"decode": decode, "grpo": grpo}, ["jax", "flax", "numpy"])

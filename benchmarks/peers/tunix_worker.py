"""google-tunix's sampler and GRPO learner as a worker of benchmarks/peers.py."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from tunix.generate.sampler import CacheConfig, Sampler
from tunix.models.qwen2.model import ModelConfig
from tunix.models.qwen2.params import create_model_from_safe_tensors
from worker import Call, StepGate, Workload, even_share, serve


class NumberTokenizer:
    """Reads and writes token ids as numbers; its special ids are never sampled."""

    def __init__(self, vocab: int) -> None:
        self._vocab = vocab

    def encode(self, text: str, **_) -> list[int]:
        return [int(word) for word in text.split()]

    def decode(self, ids: list[int], **_) -> str:
        return " ".join(map(str, ids))

    def bos_id(self) -> None:
        return None

    def eos_id(self) -> int:
        return self._vocab

    def pad_id(self) -> int:
        return self._vocab + 1


def load_model(load: Workload, mesh: jax.sharding.Mesh):
    values = json.loads((Path(load.folder) / "config.json").read_text())
    config = ModelConfig(
        num_layers=values["num_hidden_layers"],
        vocab_size=values["vocab_size"],
        embed_dim=values["hidden_size"],
        hidden_dim=values["intermediate_size"],
        num_heads=values["num_attention_heads"],
        head_dim=values["head_dim"],
        num_kv_heads=values["num_key_value_heads"],
        rope_theta=values["rope_theta"],
        norm_eps=values["rms_norm_eps"],
        use_tied_embedding=values["tie_word_embeddings"],
    )
    return create_model_from_safe_tensors(load.folder, config, mesh, dtype=jnp.float32)


def one_device() -> jax.sharding.Mesh:
    return jax.sharding.Mesh(np.array(jax.devices()[:1]).reshape(1, 1), ("fsdp", "tp"))


def texts(load: Workload) -> list[str]:
    return [" ".join(map(str, prompt)) for prompt in load.prompts]


def decode(load: Workload) -> Call:
    model = load_model(load, one_device())
    config, width = model.config, len(load.prompts[0])
    sampler = Sampler(
        model,
        NumberTokenizer(config.vocab_size),
        CacheConfig(
            width + load.new_tokens, config.num_layers, config.num_kv_heads, config.head_dim
        ),
    )
    prompts = texts(load)
    return lambda: sampler(prompts, load.new_tokens, max_prompt_length=width).tokens


def grpo(load: Workload) -> Call:
    """One global step for each call: all rollouts, then one update of one micro-batch, no KL."""
    from tunix.rl.grpo.grpo_learner import GRPOConfig, GRPOLearner
    from tunix.rl.rl_cluster import ClusterConfig, RLCluster, RLTrainingConfig, Role
    from tunix.rl.rollout.base_rollout import RolloutConfig

    mesh = one_device()
    model = load_model(load, mesh)
    width, questions = len(load.prompts[0]), len(load.prompts)
    sampled: list[list[int]] = []

    def reward(completions: list[str], **_) -> list[float]:
        sampled[:] = [[int(word) for word in text.split()] for text in completions]
        return [even_share(row) for row in sampled]

    cluster = RLCluster(
        actor=model,
        tokenizer=NumberTokenizer(model.config.vocab_size),
        cluster_config=ClusterConfig(
            role_to_mesh=dict.fromkeys((Role.ACTOR, Role.REFERENCE, Role.ROLLOUT), mesh),
            training_config=RLTrainingConfig(
                actor_optimizer=optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(1e-6)),
                eval_every_n_steps=1_000_000,
                max_steps=1_000_000,
                mini_batch_size=questions,
                train_micro_batch_size=questions,
            ),
            rollout_config=RolloutConfig(
                max_tokens_to_generate=load.new_tokens,
                max_prompt_length=width,
                kv_cache_size=width + load.new_tokens,
                temperature=1.0,
            ),
        ),
    )
    learner = GRPOLearner(
        cluster, GRPOConfig(num_generations=load.group, beta=0.0), reward_fns=reward
    )

    def batches() -> Iterator[dict[str, np.ndarray]]:
        for number in itertools.count():
            if number:  # the learner asks for the next batch when it has finished the last one
                jax.block_until_ready(nnx.state(cluster.actor_trainer.model))
                gate.pause(list(sampled))
            yield {"prompts": np.array(texts(load))}

    gate = StepGate(lambda: learner.train(batches()))
    return gate.step


if __name__ == "__main__":
    serve({"decode": decode, "grpo": grpo}, ["google-tunix", "jax", "flax"])

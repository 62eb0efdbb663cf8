"""A config of seconds: the smallest run that still goes through all the code.

python -m rapo_jax.main --config=tests/small.py --workdir=...
"""

from ml_collections import ConfigDict

from rapo_jax.configs import default


def get_config() -> ConfigDict:
    c = default.get_config()
    c.task.chains.update(
        n_entities=16,
        n_train=8,
        n_eval=4,
        two_hop=0,
        hidden=0,
        hidden_number=0,
    )
    c.model.update(width=16, ffn=32, layers=1, heads=2, kv_heads=1, head_width=8, tied=False)
    c.tools.update(passages=1, memory_mb=256, workers=1, output_chars=100)
    c.rollout.update(
        questions=2,
        group_size=4,
        n_hybrid=2,
        max_calls=4,
        prompt_tokens=20,
        step_tokens=12,
        observation_tokens=12,
        retrieved_tokens=20,
        max_tokens=96,
    )
    c.retrieval.update(width=32, mask=r"\b[A-Z][a-z]+\b|\d+", history="without_retrieved")
    c.buffer.update(samples=2, keep=1, questions=20)
    c.sft.update(steps=150, batch=16, examples=256, warmup=5, learning_rate=1e-2)
    c.optimizer.update(learning_rate=1e-3)
    c.rl.update(steps=2, micro_tokens=768, buckets=(96,))
    c.evaluate.update(rows=8)
    c.checkpoint.update(every=2)
    c.log.update(trajectories=True, trajectory_every=1, tensorboard=False)
    return c

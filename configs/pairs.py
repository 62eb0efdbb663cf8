"""The pairs task (docs/pairs.md) on a laptop: the model and the optimizer of the tiny run.

python -m rapo_jax.main --config=configs/pairs.py --workdir=runs/pairs
"""

from ml_collections import ConfigDict

from rapo_jax.configs import tiny


def get_config() -> ConfigDict:
    c = tiny.get_config()
    c.task.name = "pairs"
    c.sft.update(weak_first=0.0, weak_habit=0.85, weak_stop=0.0)
    c.buffer.update(samples=8, expert_error=0.03)
    c.rollout.update(max_calls=6, prompt_tokens=28, max_tokens=208)
    c.rl.update(steps=120, buckets=(56, 72, 80, 88, 96, 104, 112, 128, 144, 176, 208))
    return c

"""The main job on a laptop: 2 cores, no accelerator, no downloaded weights, under 15 minutes.

python -m rapo_jax.main --config=configs/tiny.py --workdir=runs/tiny
"""

from ml_collections import ConfigDict

from rapo_jax.configs import default


def get_config() -> ConfigDict:
    c = default.get_config()
    c.model.update(width=64, ffn=192, layers=3, heads=2, kv_heads=1, head_width=32, layer_unroll=3)
    c.model.init_scale = 0.08  # about width ** -0.5: with 0.02 the cold start takes far longer
    c.task.chains.update(n_entities=200, n_train=140)
    c.sft.update(
        steps=1200,
        batch=32,
        examples=12_000,
        inject_share=0.6,
        weak_habit=0.45,
        weak_stop=0.0,
        gate_one_hop=0.85,
        gate_follow=0.9,
    )
    c.tools.update(passages=1, memory_mb=256, timeout_s=2.0, output_chars=200)
    c.rollout.update(
        questions=16,
        max_calls=4,
        prompt_tokens=24,
        step_tokens=12,
        observation_tokens=8,
        retrieved_tokens=18,
        max_tokens=144,
        slots=128,
    )
    c.retrieval.update(history="without_retrieved", index="brute", mask=r"\b[A-Z][a-z]+\b|\d+")
    c.optimizer.update(learning_rate=6e-4, schedule="cosine")
    c.rl.update(
        steps=160,
        micro_tokens=384,
        buckets=(32, 40, 48, 56, 64, 72, 80, 96, 112, 144),
    )
    c.evaluate.update(every=20)
    c.log.update(trajectories=True)
    return c

"""RAPO on maths and knowledge questions, Llama-3-8B-Instruct: as qwen7b.py, with another model.

    bash launch/prepare.sh configs/llama8b.py
    python -m rapo_jax.main --config=configs/llama8b.py --workdir=runs/llama8b

Hardware: 8 GPUs of 80 GB, or a TPU slice such as v5e:8x8. Expected memory of a GPU, by
arithmetic (docs/plan.md; not measured), 37 GB: weights and moments 12 GB, the sampling weights 4
GB, the cache of 128 slots 12 GB, and prompts and temporaries of a rollout 2 GB. The update needs 37
GB in all. A chip of v5e:8x8 needs 10 of its 16 GB.
Paper's average over the ten sets: 47.6 (GRPO 40.6).
"""

from ml_collections import ConfigDict

from rapo_jax.configs import qwen7b


def get_config() -> ConfigDict:
    c = qwen7b.get_config()
    c.model.folder = f"{qwen7b.DATA_DIR}/models/Meta-Llama-3-8B-Instruct"
    c.rollout.slots = 128  # 8 kv heads: the cache is twice as large
    return c

"""RAPO on maths and knowledge questions, Qwen2.5-3B-Instruct: as qwen7b.py, with a smaller model.

    bash launch/prepare.sh configs/qwen3b.py
    python -m rapo_jax.main --config=configs/qwen3b.py --workdir=runs/qwen3b

Hardware: 4 GPUs of 80 GB, or a TPU slice such as v5e:4x4. Expected memory of a GPU, by
arithmetic (docs/plan.md; not measured), 28 GB: weights and moments 9 GB, the sampling weights 3
GB, the cache of 256 slots 14 GB, and prompts and temporaries of a rollout 1 GB. The update needs 28
GB in all. A chip of v5e:4x4 needs 11 of its 16 GB. One GPU of 141 GB is enough with
--config.mesh.tensor=1: 104 GB.
Paper's average over the ten sets: 47.0 (GRPO 40.7).
"""

from ml_collections import ConfigDict

from rapo_jax.configs import qwen7b


def get_config() -> ConfigDict:
    c = qwen7b.get_config()
    c.model.folder = f"{qwen7b.DATA_DIR}/models/Qwen2.5-3B-Instruct"
    c.mesh.tensor = 2  # as many as kv heads
    return c

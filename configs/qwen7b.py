"""RAPO on maths and knowledge questions, Qwen2.5-7B-Instruct (paper, sec. 5.1 and tab. 1).

    bash launch/prepare.sh configs/qwen7b.py
    python -m rapo_jax.main --config=configs/qwen7b.py --workdir=runs/qwen7b

Data is read from $RAPO_DATA ('data' if unset): models/, questions/ (one folder for each published
set), traces/. launch/prepare.sh lists what is missing and how to get it.

Hardware: 8 GPUs of 80 GB, or a TPU slice such as v5e:8x8. Expected memory of a GPU, by arithmetic
(docs/plan.md; not measured), 34 GB: weights and moments in float32, split over all GPUs, 11 GB;
bfloat16 sampling weights, split over tensor=4, 4 GB; the cache of 256 slots 11 GB, and prompts and
temporaries of a rollout, 2 GB. The update with remat="full" needs 34 GB in all. A chip of v5e:8x8
needs 10 of its 16 GB. For fewer or other chips bash launch/plan.sh shows which mesh and slots fit.
Paper's average over the ten sets: 51.3 (GRPO 46.7).
"""

import os

from ml_collections import ConfigDict

from rapo_jax.configs import default

DATA_DIR = os.environ.get("RAPO_DATA", "data")


def get_config() -> ConfigDict:
    c = default.get_config()
    c.stages = ("buffer", "rl", "evaluate", "report")
    c.task.name = "dataset"
    c.task.dataset.update(
        train="toolstar:train",
        eval="gsm8k:test[:200],hotpotqa:dev[:200]",  # before and after training
        manual_dir=f"{DATA_DIR}/questions",
    )
    c.model.update(folder=f"{DATA_DIR}/models/Qwen2.5-7B-Instruct", dtype="bfloat16", remat="full")
    c.mesh.update(data=1, fsdp=-1, tensor=4)  # weights, gradients and moments over all devices
    c.rollout.slots = 256  # of 512 rollouts; with 512 the cache takes 22 GB
    c.tools.search.update(  # Wikipedia, dump of 2018
        kind="retrieval", url="http://127.0.0.1:8000", cache=f"{DATA_DIR}/search.sqlite"
    )
    c.retrieval.update(encoder="minilm", encoder_folder=f"{DATA_DIR}/models/all-MiniLM-L6-v2")
    c.buffer.update(agent="none", files=(f"{DATA_DIR}/traces/aepo_qwen3_14b.jsonl",))
    c.evaluate.suites = (  # the paper's table, by the trained weights
        *("gsm8k", "math", "math500", "aime24", "aime25"),
        *("hotpotqa", "twowiki", "musique", "bamboogle", "webwalkerqa"),
    )
    return c

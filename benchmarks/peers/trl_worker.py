"""transformers' `generate` and TRL's GRPOTrainer as a worker of benchmarks/peers.py."""

from __future__ import annotations

import tempfile

import torch
from transformers import AutoModelForCausalLM
from worker import Call, StepGate, Workload, even_share, serve


def load_model(load: Workload):
    return AutoModelForCausalLM.from_pretrained(load.folder, dtype=torch.float32)


def decode(load: Workload) -> Call:
    model = load_model(load).eval()
    token_BX = torch.tensor(load.prompts)
    how = {"max_new_tokens": load.new_tokens, "do_sample": False, "pad_token_id": 0}

    def call():
        done = model.generate(token_BX, attention_mask=torch.ones_like(token_BX), **how)
        return done[:, token_BX.shape[1] :].numpy()

    return call


def number_tokenizer(vocab: int):
    """Reads and writes token ids as numbers; its end of sequence is an id that is never sampled."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    numbers = {str(i): i for i in range(vocab + 2)}
    tokenizer = Tokenizer(models.WordLevel(numbers, unk_token="0"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token=str(vocab), pad_token=str(vocab + 1)
    )


def grpo(load: Workload) -> Call:
    """One optimizer step for each call; float32, no checkpointing of activations, no KL term."""
    from datasets import Dataset
    from transformers import TrainerCallback
    from trl import GRPOConfig, GRPOTrainer

    sampled: list[list[int]] = []

    def reward(completion_ids: list[list[int]], **_) -> list[float]:
        sampled[:] = completion_ids
        return [even_share(row) for row in completion_ids]

    class Pause(TrainerCallback):
        def on_step_end(self, *_, **__) -> None:
            gate.pause(list(sampled))

    model = load_model(load)
    prompts = [" ".join(map(str, prompt)) for prompt in load.prompts]
    config = GRPOConfig(
        output_dir=tempfile.mkdtemp(),
        per_device_train_batch_size=load.rows,
        num_generations=load.group,
        max_completion_length=load.new_tokens,
        temperature=1.0,
        beta=0.0,
        loss_type="grpo",
        learning_rate=1e-6,
        lr_scheduler_type="constant",
        max_grad_norm=1.0,
        max_steps=1000,
        shuffle_dataset=False,
        bf16=False,
        gradient_checkpointing=False,
        use_cpu=True,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
    )
    trainer = GRPOTrainer(
        model,
        reward_funcs=reward,
        args=config,
        train_dataset=Dataset.from_dict({"prompt": prompts * 100}),
        processing_class=number_tokenizer(model.config.vocab_size),
        callbacks=[Pause()],
    )
    gate = StepGate(trainer.train)
    return gate.step


if __name__ == "__main__":
    serve({"decode": decode, "grpo": grpo}, ["torch", "transformers", "trl"])

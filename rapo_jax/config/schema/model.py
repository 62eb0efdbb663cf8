"""Keys of the model and of the devices that hold it."""

from __future__ import annotations

import dataclasses

from rapo_jax.config.keys import key


@dataclasses.dataclass(frozen=True)
class MeshSettings:
    """The devices as a grid, data x fsdp x tensor. One of them may be -1: as many as remain."""

    PER_CALL = True

    data: int = key(-1, "parts that rows are split into")
    fsdp: int = key(1, "parts that rows, weights, gradients and Adam moments are split into")
    tensor: int = key(1, "parts that heads, ffn and vocabulary are split into; divides model.heads")


@dataclasses.dataclass(frozen=True)
class DistributedSettings:
    """One run on several processes, with one config and one shared workdir."""

    PER_CALL = True

    mode: str = key(
        "off",
        "how the processes find each other",
        choices={
            "off": "one process",
            "auto": "by the metadata of a TPU pod or by SLURM's variables",
            "explicit": "by the three keys below",
        },
    )
    coordinator: str = key("", "host:port of process 0, a free port there")
    processes: int = key(1, "number of processes", at_least=1)
    process: int = key(0, "number of this process, from 0 on")


LORA_TARGETS = {
    "q": "query",
    "k": "key",
    "v": "value",
    "o": "output",
    "gate": "gate",
    "up": "up",
    "down": "down",
}
"""Name in model.lora.targets -> kernel of a block."""


@dataclasses.dataclass(frozen=True)
class LoraSettings:
    """Low-rank adapters on frozen weights: those of model.folder, or of the cold start."""

    rank: int = key(
        0,
        "rank of the adapters; 0 = none, all weights are trained",
        at_least=0,
        remedy="must be at least 0, which is none",
    )
    alpha: float = key(32.0, "the adapters' product is scaled by alpha / rank", above=0)
    targets: tuple[str, ...] = key(
        tuple(LORA_TARGETS),
        "kernels that get an adapter",
        choices=tuple(LORA_TARGETS),
    )
    merge: bool = key(
        False,
        "sample with the adapters added into the weights: decoding is faster, but in bfloat16 most "
        "of a small change is rounded away",
    )


@dataclasses.dataclass(frozen=True)
class ModelSettings:
    """A decoder of the Llama family. Names in brackets are those of Hugging Face's config.json."""

    folder: str = key(
        "",
        "Hugging Face folder (Qwen2, Qwen2.5, Qwen3, Llama 3), or the name of a model of the hub "
        "in its cache on this machine, of the weights and of all keys from "
        "vocab to tied; '' = fresh weights of the shape given here",
    )
    vocab: int = key(0, "size of the vocabulary; 0 = the tokenizer's", unit="tokens")
    width: int = key(64, "width of the residual stream (hidden_size)", at_least=1)
    ffn: int = key(192, "width inside the feed-forward block (intermediate_size)", at_least=1)
    layers: int = key(2, "layers (num_hidden_layers)", at_least=1)
    heads: int = key(4, "query heads (num_attention_heads)", at_least=1)
    kv_heads: int = key(2, "key-value heads (num_key_value_heads); divide model.heads", at_least=1)
    head_width: int = key(16, "width of a head (head_dim); must be even", at_least=1)
    rope_theta: float = key(10_000.0, "base of the rotary frequencies (rope_theta)", above=0)
    rope_type: str = key(
        "default",
        "scaling of the rotary frequencies (rope_type)",
        choices={"default": "none", "llama3": "that of Llama 3.1 and later, by the next four keys"},
    )
    rope_factor: float = key(8.0, "llama3: low frequencies are divided by this (factor)", above=0)
    rope_low_freq: float = key(
        1.0, "llama3: low frequencies turn less often in rope_positions (low_freq_factor)", above=0
    )
    rope_high_freq: float = key(
        4.0, "llama3: frequencies that turn more often than this stay (high_freq_factor)"
    )
    rope_positions: int = key(
        8192,
        "llama3: length of pretraining (original_max_position_embeddings)",
        unit="tokens",
        at_least=1,
    )
    norm_eps: float = key(1e-6, "added to the mean square in RMSNorm (rms_norm_eps)")
    qkv_bias: bool = key(True, "biases on query, key and value: Qwen2 has them")
    qk_norm: bool = key(False, "RMSNorm of queries and keys: Qwen3 has it")
    tied: bool = key(True, "the output head is the embedding (tie_word_embeddings)")
    init_scale: float = key(0.02, "standard deviation of fresh weights")
    dtype: str = key(
        "float32",
        "type of the computation; master weights are float32",
        choices=("float32", "bfloat16"),
    )
    layer_unroll: int = key(
        1,
        "layers unrolled in one turn of the scan over layers in training",
        at_least=1,
        per_call=True,
    )
    score_logits: int = key(
        2**26,
        "most logits, float32, that a device computes at a time in scoring and updates (the "
        "default: 0.27 GB); a backward pass holds about three such arrays; more take less time",
        at_least=1,
        per_call=True,
    )
    remat: str = key(
        "none",
        "what the update keeps of a layer for the backward pass; the rest is computed again",
        choices={
            "none": "everything",
            "dots": "the products of matrices",
            "dots_no_batch": "the products with weights",
            "offload": "the products with weights, in host memory",
            "full": "only the input of each layer",
        },
        per_call=True,
    )
    attention: str = key(
        "auto",
        "attention over whole rows, and over the KV cache in decoding",
        choices={
            "auto": "cudnn on GPUs, splash on TPUs, plain elsewhere",
            "plain": "no kernel: all scores of whole rows in memory",
            "cudnn": "flash attention of cuDNN",
            "splash": "splash attention of Pallas on TPUs, and paged attention in decoding",
        },
        per_call=True,
    )
    lora: LoraSettings = LoraSettings()

"""A model of a few numbers; tests change what they are about with `dataclasses.replace`."""

from rapo_jax.config import LoraSettings, ModelSettings

SMALL_MODEL = ModelSettings(
    folder="",
    vocab=23,
    width=16,
    ffn=24,
    layers=1,
    heads=4,
    kv_heads=2,
    head_width=4,
    rope_theta=100.0,
    rope_type="default",
    rope_factor=8.0,
    rope_low_freq=1.0,
    rope_high_freq=4.0,
    rope_positions=16,
    norm_eps=1e-6,
    qkv_bias=True,
    qk_norm=False,
    tied=True,
    init_scale=0.3,
    dtype="float32",
    layer_unroll=1,
    score_logits=2**26,
    remat="none",
    attention="auto",
    lora=LoraSettings(rank=0, alpha=1.0, targets=(), merge=False),
)

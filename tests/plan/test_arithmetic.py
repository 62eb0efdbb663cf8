"""Bytes that only one platform's kernels need."""

from __future__ import annotations

import dataclasses

import pytest

from configs import qwen7b
from rapo_jax.config.read import read_settings
from rapo_jax.model.attention import choose
from rapo_jax.plan.arithmetic import cudnn_scratch
from rapo_jax.plan.models import planned_model
from rapo_jax.plan.shapes import Split, shape_on

QWEN_7B = planned_model(read_settings(qwen7b.get_config().to_dict() | {"stages": ("plan",)}).model)


@pytest.mark.parametrize(
    ("kv_heads", "tensor", "asked"),
    [(4, 1, 1_296_892_160), (28, 1, 650_969_344), (4, 4, 324_223_232)],
)
def test_cudnn_s_backward_pass_is_given_the_scratch_memory_that_it_asks_for(
    kv_heads, tensor, asked
):
    """Of 8 rows of 5632, as cuDNN 9.28 says for compute capability 9.0."""
    model = dataclasses.replace(QWEN_7B, kv_heads=kv_heads)
    split = Split(fsdp=1, tensor=tensor, slots=1, remat="full")
    shape = shape_on(model, fsdp=1, tensor=tensor)
    on_gpu = choose(model, platform="gpu")
    assert cudnn_scratch(model, shape, split, on_gpu, 8, 5632) == asked - 256  # its alignment
    assert cudnn_scratch(model, shape, split, choose(model, platform="tpu"), 8, 5632) == 0

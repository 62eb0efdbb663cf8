"""Rematerialisation: every policy computes the same, and stricter ones keep less."""

from __future__ import annotations

import dataclasses

import jax
import numpy as np
import pytest

from rapo_jax.config import KEYS
from rapo_jax.model.remat import POLICIES
from rapo_jax.model.scoring import score
from rapo_jax.model.transformer import init_params
from tests.models import SMALL_MODEL

DEEP = dataclasses.replace(SMALL_MODEL, layers=6)
TOKENS = np.random.default_rng(0).integers(0, DEEP.vocab, (4, 48), np.int32)


def compiled(policy, unroll=1):
    """Bytes of temporaries, and (loss, gradient)."""
    settings = dataclasses.replace(DEEP, remat=policy, layer_unroll=unroll)
    params = jax.jit(init_params, static_argnums=0)(DEEP, jax.random.key(0))

    def loss(params):
        return -score(settings, params, TOKENS)[0].mean()

    program = jax.jit(jax.value_and_grad(loss)).lower(params).compile()
    return program.memory_analysis().temp_size_in_bytes, program(params)


@pytest.fixture(scope="module")
def everything():
    return compiled("none")


@pytest.mark.parametrize("policy", [name for name in POLICIES if name != "none"])
def test_a_policy_changes_neither_loss_nor_gradient(policy, everything):
    temporaries, found = compiled(policy)
    for left, right in zip(jax.tree.leaves(found), jax.tree.leaves(everything[1]), strict=True):
        np.testing.assert_allclose(left, right, rtol=1e-4, atol=1e-6)
    if policy in ("dots_no_batch", "full"):  # the scores of attention are not kept
        assert temporaries < everything[0]


def test_unrolled_layers_are_computed_again_too(everything):
    temporaries, _ = compiled("full", unroll=DEEP.layers)
    assert temporaries < everything[0]


def test_config_offers_all_policies():
    assert set(KEYS["model.remat"].choices) == set(POLICIES)

"""Step entropies against a double loop, and what they must not depend on."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rapo_jax.method import entropy
from rapo_jax.types import Source

step_entropy = jax.jit(entropy.step_entropy, static_argnames="num_steps")


def naive_step_entropy(entropy_BT, source_BT, step_BT, num_steps):
    """Eq. 2 token by token."""
    rows = entropy_BT.shape[0]
    entropy_BS = np.zeros((rows, num_steps))
    source_BS = np.full((rows, num_steps), Source.PAD)
    for b in range(rows):
        for s in range(num_steps):
            found = [
                entropy_BT[b, t]
                for t in range(entropy_BT.shape[1])
                if step_BT[b, t] == s and source_BT[b, t] == Source.POLICY
            ]
            if found:
                entropy_BS[b, s] = sum(found) / len(found)
                source_BS[b, s] = Source.POLICY
            if any((step_BT[b] == s) & (source_BT[b] == Source.RETRIEVED)):
                source_BS[b, s] = Source.RETRIEVED
    return entropy_BS, source_BS


def random_tape(seed, rows=5, slots=40, num_steps=6):
    """Tapes like the rollout's: prompt, then policy (+ tool) or retrieved steps, then padding."""
    rng = np.random.default_rng(seed)
    source_BT = np.full((rows, slots), int(Source.PAD))
    step_BT = np.zeros((rows, slots), np.int64)
    for b in range(rows):
        tape = [(Source.PROMPT, 0)] * rng.integers(1, 5)
        for s in range(rng.integers(1, num_steps + 1)):
            if s > 0 and rng.random() < 0.4:
                tape += [(Source.RETRIEVED, s)] * rng.integers(1, 5)
            else:
                tape += [(Source.POLICY, s)] * rng.integers(1, 5)
                tape += [(Source.TOOL, s)] * rng.integers(0, 4)
        for t, (source, s) in enumerate(tape[:slots]):
            source_BT[b, t], step_BT[b, t] = source, s
        step_BT[b, len(tape) :] = tape[-1][1]
    return rng.uniform(0, 3, (rows, slots)), source_BT, step_BT


@given(seed=st.integers(0, 2**32 - 1))
@settings(max_examples=20, deadline=None)
def test_step_entropy_is_the_mean_over_the_policys_own_tokens_of_each_step(seed):
    entropy_BT, source_BT, step_BT = random_tape(seed)
    expected_BS, expected_source_BS = naive_step_entropy(entropy_BT, source_BT, step_BT, 6)
    entropy_BS, source_BS = step_entropy(
        jnp.asarray(entropy_BT, jnp.float32), source_BT, step_BT, num_steps=6
    )
    np.testing.assert_allclose(entropy_BS, expected_BS, rtol=1e-6, atol=1e-6)
    np.testing.assert_array_equal(source_BS, expected_source_BS)


def test_what_stands_at_other_tokens_does_not_enter_an_entropy():
    entropy_BT, source_BT, step_BT = random_tape(0)
    poisoned_BT = np.where(source_BT == Source.POLICY, entropy_BT, np.nan)
    clean_BS, _ = step_entropy(jnp.asarray(entropy_BT), source_BT, step_BT, num_steps=6)
    poisoned_BS, _ = step_entropy(jnp.asarray(poisoned_BT), source_BT, step_BT, num_steps=6)
    np.testing.assert_array_equal(poisoned_BS, clean_BS)


def test_steps_the_row_never_reached_are_padding_of_entropy_zero():
    source_BT = jnp.array([[Source.PROMPT, Source.POLICY, Source.TOOL, Source.PAD]])
    entropy_BS, source_BS = step_entropy(
        jnp.array([[9.0, 2.0, 9.0, 9.0]]), source_BT, jnp.zeros((1, 4), jnp.int32), num_steps=3
    )
    np.testing.assert_array_equal(entropy_BS, [[2.0, 0.0, 0.0]])
    np.testing.assert_array_equal(source_BS, [[Source.POLICY, Source.PAD, Source.PAD]])


def test_steps_beyond_the_last_one_are_left_out():
    source_BT = jnp.full((1, 3), int(Source.POLICY))
    entropy_BS, _ = step_entropy(
        jnp.array([[1.0, 2.0, 4.0]]), source_BT, jnp.array([[0, 1, 2]]), num_steps=2
    )
    np.testing.assert_array_equal(entropy_BS, [[1.0, 2.0]])


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_the_dtype_of_the_token_entropies_stays(dtype):
    entropy_BT, source_BT, step_BT = random_tape(1)
    with jax.enable_x64(True):
        entropy_BS, _ = step_entropy(
            jnp.asarray(entropy_BT, dtype), source_BT, step_BT, num_steps=6
        )
        assert entropy_BS.dtype == dtype
        tolerance = {"float32": 1e-6, "float64": 1e-15}[dtype]
        expected_BS, _ = naive_step_entropy(entropy_BT, source_BT, step_BT, 6)
        np.testing.assert_allclose(entropy_BS, expected_BS, rtol=tolerance, atol=tolerance)


def test_step_entropy_needs_no_jit():
    entropy_BT, source_BT, step_BT = map(jnp.asarray, random_tape(2))
    for eager, compiled in zip(
        entropy.step_entropy(entropy_BT, source_BT, step_BT, num_steps=6),
        step_entropy(entropy_BT, source_BT, step_BT, num_steps=6),
        strict=True,
    ):
        np.testing.assert_allclose(eager, compiled, rtol=1e-6)

"""Log-probabilities of tokens by chunks of positions, with a backward pass of their own.

A pass over all positions would hold logits of the whole vocabulary for each. Left to automatic
differentiation, chunks would multiply float32 by float32 in the backward pass, half as fast on a
GPU as bfloat16, and read and write arrays of the head's size several times a chunk.
"""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.custom_derivatives import CustomVJPPrimal

from rapo_jax.config import ModelSettings
from rapo_jax.model.sharding import constrain
from rapo_jax.model.transformer import unembed


def head_name(settings: ModelSettings) -> str:
    """The parameter that `unembed` multiplies with."""
    return "embed_VD" if settings.tied else "head_DV"


def split_logits(settings: ModelSettings, head: jax.Array, hidden: jax.Array) -> jax.Array:
    """`unembed`; on a tensor axis each device has its part of the vocabulary."""
    logits = unembed(settings, {head_name(settings): head}, hidden)
    return constrain(logits, *(None,) * (logits.ndim - 1), "vocab")


def log_prob(logits: jax.Array, target: jax.Array) -> jax.Array:
    """Log-probability of each token `target` `[...]` under float32 logits `[..., V]`."""
    chosen = jnp.sum(jnp.where(_is_target(logits, target), logits, 0), axis=-1)
    return chosen - jax.nn.logsumexp(logits, axis=-1)


def _is_target(logits: jax.Array, target: jax.Array) -> jax.Array:
    vocab = jax.lax.broadcasted_iota(target.dtype, logits.shape, logits.ndim - 1)
    return vocab == target[..., None]


class Positions(NamedTuple):
    """Positions of rows [B, T] or of chunks [I, X], and the token that each is to predict."""

    hidden: jax.Array
    """[B, T, D] or [C, X, D]."""
    target: jax.Array
    wanted: jax.Array
    """Whether the target's log-probability is asked for."""


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def chunked_log_probs(settings: ModelSettings, head: jax.Array, chunks: Positions) -> jax.Array:
    """Log-probabilities logp_IX of the targets of I chunks; `head` is the parameter `head_name`.

    Chunks without a wanted position come last. They are skipped: their log-probabilities and
    gradients are 0.
    """
    head = head.astype(settings.dtype)  # once, and not for each chunk

    def of_chunk(chunk: Positions) -> jax.Array:
        hidden_XD, target_X, wanted_X = chunk
        return jax.lax.cond(
            wanted_X.any(),
            lambda: log_prob(split_logits(settings, head, hidden_XD), target_X),
            lambda: jnp.zeros(target_X.shape),
        )

    return jax.lax.map(of_chunk, chunks)


Saved = tuple[jax.Array, Positions, tuple[()] | None]
"""Head, chunks, and None if the head is frozen: a pytree without arrays stays known to Python."""


def _forward(
    settings: ModelSettings, head: CustomVJPPrimal, chunks: Positions
) -> tuple[jax.Array, Saved]:
    values = jax.tree.map(lambda leaf: leaf.value, chunks)
    result = chunked_log_probs(settings, head.value, values)
    return result, (head.value, values, () if head.perturbed else None)


def _backward(
    settings: ModelSettings, saved: Saved, weight_IX: jax.Array
) -> tuple[jax.Array | None, Positions]:
    """Gradients of the head and of the hidden states.

    That of logits is the target's indicator less the softmax, in the compute dtype when it is
    multiplied, as the gradients of all other products are; sums are float32.
    """
    head, (hidden_IXD, target_IX, wanted_IX), changes = saved
    cast, axes = head.astype(settings.dtype), head_name(settings)[-2:]
    product = partial(jnp.einsum, preferred_element_type=jnp.float32)

    def add(
        i: jax.Array, sums: tuple[jax.Array | None, jax.Array]
    ) -> tuple[jax.Array | None, jax.Array]:
        sum_head, change_IXD = sums
        hidden_XD, target_X, weight_X = hidden_IXD[i], target_IX[i], weight_IX[i]
        logits_XV = split_logits(settings, cast, hidden_XD)
        error_XV = _is_target(logits_XV, target_X) - jax.nn.softmax(logits_XV)
        error_XV = (error_XV * weight_X[:, None]).astype(settings.dtype)
        if sum_head is not None:
            sum_head += product(f"XD,XV->{axes}", hidden_XD.astype(settings.dtype), error_XV)
        change_XD = product(f"XV,{axes}->XD", error_XV, cast)
        return sum_head, change_IXD.at[i].set(change_XD.astype(change_IXD.dtype))

    zeros = None if changes is None else jnp.zeros(head.shape, jnp.float32)
    used = wanted_IX.any(axis=1).sum()
    sums = jax.lax.fori_loop(0, used, add, (zeros, jnp.zeros_like(hidden_IXD)))
    gradient = None if sums[0] is None else sums[0].astype(head.dtype)
    nothing: Any = np.zeros(target_IX.shape, jax.dtypes.float0)  # of integers
    return gradient, Positions(sums[1], nothing, nothing)


chunked_log_probs.defvjp(_forward, _backward, symbolic_zeros=True)

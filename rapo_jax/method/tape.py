"""Computes masks and the share of retrieved tokens F_ret from the sources of a tape."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np

from rapo_jax.types import Array, Source


def response_mask(source_BT: Array) -> Array:
    """True at response tokens: everything after the prompt, of the policy, tools and retrieval."""
    return (source_BT != Source.PAD) & (source_BT != Source.PROMPT)


def policy_mask(source_BT: Array, row_mask_B: Array) -> Array:
    """True at the tokens that the policy wrote, in rows whose mask is not 0."""
    return (source_BT == Source.POLICY) & (row_mask_B[:, None] > 0)


def retrieved_share(source_BT: Array) -> Array:
    """F_ret of each row, float: retrieved tokens / all response tokens (Eq. 8).

    The denominator counts policy, tool and retrieved tokens, not the prompt. A row without
    retrieval, hence every on-policy rollout, has exactly 0; so has one without a response.
    """
    retrieved_B = (source_BT == Source.RETRIEVED).sum(1)
    return retrieved_B / jnp.maximum(response_mask(source_BT).sum(1), 1)


def without_retrieved_tokens(table_BT: np.ndarray, source_BT: np.ndarray) -> np.ndarray:
    """Removes the RETRIEVED positions from a [B, T] array of a tape.

    Later positions shift left, zeros fill the end.
    """
    kept_BT = source_BT != Source.RETRIEVED
    # the kept positions first, in their order
    order_BT = np.argsort(~kept_BT, axis=1, kind="stable")
    moved_BT = np.take_along_axis(table_BT, order_BT, axis=1)
    is_kept_BT = np.arange(kept_BT.shape[1]) < kept_BT.sum(1)[:, None]
    return np.where(is_kept_BT, moved_BT, np.zeros_like(moved_BT))


def with_rows(table: np.ndarray, rows: np.ndarray, values: object) -> np.ndarray:
    """A copy of the table with `values` in `rows`."""
    table = np.array(table)
    table[rows] = values
    return table


def rows_of_groups(groups: np.ndarray, group_size: int) -> np.ndarray:
    """The rows of these groups, one group after another."""
    return (groups[:, None] * group_size + np.arange(group_size)).reshape(-1)


def hybrid_mask(questions: int, *, group_size: int, n_hybrid: int) -> np.ndarray:
    """True at the rows that may retrieve: the last `n_hybrid` rollouts of each question, `[B]`."""
    return np.tile(np.arange(group_size) >= group_size - n_hybrid, questions)

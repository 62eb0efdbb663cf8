"""Attention over a KV cache: blocks compute what plain XLA does; what is written where."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rapo_jax.model.cached_attention import BLOCK, FORMS, LayerCache, attend_cached
from rapo_jax.model.whole_attention import attend, plain
from tests.models import SMALL_MODEL

WRITTEN, POSITIONS = 4, 3 * BLOCK
attend_blocks = jax.jit(partial(attend_cached, FORMS["blocks"]))


def whole_rows(form, layer):
    """key_BTKH and value_BTKH of a layer stored in any form."""
    key_BKHT, value_BKTH = form.part(layer, row_B=None, at=0, positions=POSITIONS)
    return key_BKHT.transpose(0, 3, 1, 2), value_BKTH.transpose(0, 2, 1, 3)


def written(*, X, dtype="float32", heads=4, kv_heads=2, width=6, seed=0):
    """(queries, cache full of rubbish beyond each row's end, first position of each row's X)"""
    rng = np.random.default_rng(seed)

    def draw(*shape):
        return jnp.asarray(rng.standard_normal(shape), dtype)

    key, value = (draw(WRITTEN, POSITIONS, kv_heads, width) for _ in range(2))
    start_B = jnp.asarray(rng.integers(0, POSITIONS - X + 1, WRITTEN), jnp.int32)
    start_B = start_B.at[0].set(0).at[1].set(BLOCK - X)  # an empty row, and one block's end
    return draw(WRITTEN, X, heads, width), FORMS["blocks"].layer(key, value), start_B


@pytest.mark.parametrize(("dtype", "atol"), [("float32", 1e-6), ("bfloat16", 2e-2)])
@pytest.mark.parametrize(("X", "heads", "kv_heads"), [(1, 4, 2), (7, 4, 1), (1, 3, 3)])
def test_attention_over_what_is_written_is_plain_attention(X, heads, kv_heads, dtype, atol):
    for seed in range(3):
        query, layer, start_B = written(X=X, heads=heads, kv_heads=kv_heads, dtype=dtype, seed=seed)
        found = attend_blocks(query, layer, row_B=None, start_B=start_B, length_B=start_B + X)
        position_BX1 = start_B[:, None, None] + jnp.arange(X)[:, None]
        wanted = attend(query, *layer, jnp.arange(POSITIONS) <= position_BX1)
        assert found.dtype == query.dtype and found.shape == query.shape
        np.testing.assert_allclose(np.float32(found), np.float32(wanted), atol=atol)


def test_a_whole_row_attended_to_from_the_cache_is_plain_attention():
    rng, blocks, H = np.random.default_rng(0), FORMS["blocks"], SMALL_MODEL.head_width
    K = SMALL_MODEL.kv_heads
    rows = [jnp.float32(rng.standard_normal((2, BLOCK + 9, n, H))) for n in (2 * K, K, K)]
    zero_B = jnp.zeros(2, jnp.int32)
    empty = blocks.empty(SMALL_MODEL, rows=2, positions=BLOCK + 9)
    layer = blocks.write(empty, *rows[1:], row_B=None, start_B=zero_B)
    found = attend_blocks(rows[0], layer, row_B=None, start_B=zero_B, length_B=zero_B + BLOCK + 9)
    np.testing.assert_allclose(found, jax.jit(plain)(*rows), atol=1e-6)


@pytest.mark.parametrize("X", [1, 7])
def test_positions_beyond_a_rows_end_change_no_bit_of_its_result(X):
    query, layer, start_B = written(X=X)
    how, longest = {"row_B": None, "start_B": start_B}, start_B.max() + X
    found = attend_blocks(query, layer, length_B=start_B + X, **how)
    for more in (longest, longest + 1, -(-longest // BLOCK) * BLOCK, POSITIONS):
        length_B = jnp.full(WRITTEN, more)
        np.testing.assert_array_equal(found, attend_blocks(query, layer, length_B=length_B, **how))
    for row in range(WRITTEN):  # the end of the row itself, whatever others need
        end = start_B[row] + X
        alone = attend_blocks(query, layer, length_B=jnp.full(WRITTEN, end), **how)
        np.testing.assert_array_equal(alone[row], found[row])
        beyond_T = jnp.arange(POSITIONS) >= end
        rubbish = LayerCache(
            jnp.where(beyond_T, 1e4, layer.key),
            jnp.where(beyond_T[:, None], -1e4, layer.value),
        )
        other = attend_blocks(query, rubbish, length_B=start_B + X, **how)
        np.testing.assert_array_equal(other[row], found[row])


def test_rows_are_attended_to_by_their_numbers():
    query, layer, start_B = written(X=7)
    whole = attend_blocks(query, layer, row_B=None, start_B=start_B, length_B=start_B + 7)
    for some in ([0], [3], [2, 0], [1, 3, 0]):
        row_B = jnp.array(some)
        how = {"row_B": row_B, "start_B": start_B[row_B], "length_B": start_B[row_B] + 7}
        found = attend_blocks(query[row_B], layer, **how)
        np.testing.assert_allclose(found, whole[row_B], atol=1e-6)


@pytest.mark.parametrize("name", list(FORMS))
def test_keys_and_values_are_written_where_they_belong_and_nowhere_else(name):
    form, rng = FORMS[name], np.random.default_rng(1)
    old, new = (
        [jnp.float32(rng.standard_normal((WRITTEN, T, 2, 6))) for _ in range(2)]
        for T in (POSITIONS, 5)
    )
    layer, start_B = form.layer(*old), jnp.array([0, 2, BLOCK - 2, POSITIONS - 5])

    def check(found, rows):
        wanted = [np.array(x) for x in old]
        for b in rows:
            place = slice(int(start_B[b]), int(start_B[b]) + 5)
            for x, fresh in zip(wanted, new, strict=True):
                x[b, place] = fresh[b]
        for left, right in zip(whole_rows(form, found), wanted, strict=True):
            np.testing.assert_array_equal(left, right)

    check(form.write(layer, *new, row_B=None, start_B=start_B), range(WRITTEN))
    for some in ([0], [3], [2, 0], [1, 3, 0]):
        row_B = jnp.array(some)
        part = (x[row_B] for x in new)
        check(form.write(layer, *part, row_B=row_B, start_B=start_B[row_B]), some)


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
def test_an_empty_cache_has_whole_pages(form):
    for positions in (1, form.page, form.page + 1):
        layer = form.empty(SMALL_MODEL, rows=3, positions=positions)
        pages = -(-positions // form.page)
        assert layer.key.shape[form.key.index("T")] == form.page * pages
        assert layer.value.shape[form.value.index("T")] == form.page * pages

"""Rows without an advantage are weighed, not computed."""

from __future__ import annotations

import jax
import numpy as np

from rapo_jax.train.mini_batches import without_zero_advantage_rows
from rapo_jax.types import Batch, Source


def test_however_many_rows_are_left_out_nothing_is_compiled_again(tapes):
    def left_out(rows):
        busy_B = np.float32(np.arange(len(tapes.length_B)) >= rows)
        some = Batch(tapes.token_BT, tapes.source_BT, tapes.logp_BT, busy_B, busy_B)
        return without_zero_advantage_rows(some, tapes.length_B, aggregation="token_mean")[2]

    policy_BT = tapes.source_BT == Source.POLICY
    assert left_out(1) == policy_BT[:1].sum()
    compiled = []
    record = lambda event, _, **about: compiled.append(event)  # noqa: E731
    jax.monitoring.register_event_duration_secs_listener(record)
    try:
        assert [left_out(rows) for rows in (2, 5)] == [policy_BT[:n].sum() for n in (2, 5)]
    finally:
        jax.monitoring.unregister_event_duration_listener(record)
    assert compiled == []


def test_a_row_with_an_advantage_at_some_of_its_tokens_is_computed(tapes):
    advantage_BT = np.zeros(tapes.token_BT.shape, np.float32)
    advantage_BT[3, 1] = -0.5
    share_B = np.zeros(len(advantage_BT), np.float32)
    batch = Batch(tapes.token_BT, tapes.source_BT, tapes.logp_BT, advantage_BT, share_B)
    kept, length_B, _ = without_zero_advantage_rows(batch, tapes.length_B, aggregation="token_mean")
    np.testing.assert_array_equal(kept.token_BT, tapes.token_BT[3:4])
    assert length_B.tolist() == tapes.length_B[3:4].tolist()

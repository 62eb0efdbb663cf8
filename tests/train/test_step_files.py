"""What a step appends to files of the workdir."""

from __future__ import annotations

import numpy as np

from rapo_jax.train.step_files import row_advantage
from rapo_jax.types import Source


def test_the_advantage_of_a_row_is_the_one_that_it_was_trained_with():
    source_BT = np.array([[Source.PROMPT, Source.POLICY, Source.TOOL, Source.POLICY]] * 2)
    source_BT[1] = Source.PAD
    advantage_BT = np.array([[9.0, 1.0, 9.0, 2.0], [9.0, 9.0, 9.0, 9.0]], np.float32)
    assert row_advantage(advantage_BT, source_BT).tolist() == [1.5, 0.0]
    assert row_advantage(np.float32([0.5, -1]), source_BT).tolist() == [0.5, -1]

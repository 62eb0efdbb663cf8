"""From right and wrong samples of each question to pass@1, avg@k and pass@k."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def pass_at_k(samples: int, right: int, k: int) -> float:
    """Chance that k of `samples` drawn without replacement hold at least one of the `right` ones.

    The unbiased estimate 1 - C(n - c, k) / C(n, k) of Chen et al. (arXiv 2107.03374), as a product
    so that large n neither overflows nor loses digits.
    """
    if not 0 <= right <= samples:
        raise ValueError(f"right={right}: must be 0 to samples={samples}")
    if not 1 <= k <= samples:
        raise ValueError(f"k={k}: pass@k needs 1 to samples={samples} samples a question")
    wrong = samples - right
    return 1.0 - float(np.prod([(wrong - i) / (samples - i) for i in range(k)]).clip(min=0.0))


def pass_rates(score_QK: Sequence[Sequence[float]], *, k: int) -> dict[str, float]:
    """Means over questions of 'pass@1', 'avg@k' and 'pass@k', each under its name with its k.

    A row holds the scores of one question's samples in sampling order; a score of 1 is right, a
    smaller one (a partial F1) is not. pass@1 and pass@k are unbiased estimates from all samples of
    a row, avg@k is the mean score of its first k.
    """
    if not score_QK:
        raise ValueError("pass_rates: there is no question to average over")
    short = [q for q, row in enumerate(score_QK) if len(row) < k]
    if short:
        raise ValueError(
            f"k={k}: question {short[0]} has {len(score_QK[short[0]])} samples; sample at least k "
            "answers for every question"
        )

    def mean_pass(at: int) -> float:
        rows = ((len(row), sum(score >= 1 for score in row)) for row in score_QK)
        return float(np.mean([pass_at_k(n, right, at) for n, right in rows]))

    average = float(np.mean([np.mean(row[:k]) for row in score_QK]))
    return {"pass@1": mean_pass(1), f"avg@{k}": average, f"pass@{k}": mean_pass(k)}

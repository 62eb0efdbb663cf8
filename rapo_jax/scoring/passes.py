"""pass@1, avg@k and pass@k from the scores of several samples for each question."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def pass_at_k(samples: int, right: int, k: int) -> float:
    """Probability that k of `samples`, drawn without replacement, include one of the `right` ones.

    The unbiased estimate 1 - C(n - c, k) / C(n, k) of Chen et al. (arXiv 2107.03374), as a product
    so that large n neither overflows nor loses digits.

    Raises:
        ValueError: unless 0 <= right <= samples and 1 <= k <= samples.
    """
    if not 0 <= right <= samples:
        raise ValueError(f"right={right}: must be 0 to samples={samples}")
    if not 1 <= k <= samples:
        raise ValueError(f"k={k}: pass@k needs 1 to samples={samples} samples a question")
    wrong = samples - right
    return 1.0 - float(np.prod([(wrong - i) / (samples - i) for i in range(k)]).clip(min=0.0))


def pass_rates(score_QG: Sequence[Sequence[float]], *, k: int) -> dict[str, float]:
    """Means over questions of 'pass@1', 'avg@k' and 'pass@k', each under its name with its k.

    `score_QG[q]` holds the scores of one question's samples in sampling order, for some more than
    for others; a score of 1 is right, a smaller one (a partial F1) is not. pass@1 and pass@k are
    unbiased estimates from all samples of a question, avg@k is the mean score of its first k.
    """
    if not score_QG:
        raise ValueError("pass_rates: there is no question to average over")
    for q, row in enumerate(score_QG):
        if len(row) < k:
            raise ValueError(
                f"k={k}: question {q} has {len(row)} samples; sample at least k answers for every "
                "question"
            )

    def mean_pass(at: int) -> float:
        counts = ((len(row), sum(score >= 1 for score in row)) for row in score_QG)
        return float(np.mean([pass_at_k(n, right, at) for n, right in counts]))

    average = float(np.mean([np.mean(row[:k]) for row in score_QG]))
    return {"pass@1": mean_pass(1), f"avg@{k}": average, f"pass@{k}": mean_pass(k)}

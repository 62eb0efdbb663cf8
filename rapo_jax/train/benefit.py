"""Retrieval probability of each question by what retrieval has earned on like questions.

Not in the paper. A group has on-policy and hybrid rollouts of the same question, so that each step
measures for free what retrieval is worth there.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

ALIKE = 0.95
"""Least inner product of the embeddings of two questions that count as alike."""
HALF_LIFE = 20
"""Steps after which a measured gain counts half."""
PRIOR = 1.0
"""Weight of the assumption that retrieval gains nothing, in groups whose hybrid rows all retrieve."""
TEMPERATURE = 0.1
"""Gain of reward at which the odds of a retrieval are e times those without a gain."""


class Benefit:
    """Gains of past groups, and the probability that follows from them."""

    def __init__(self, encode: Callable[[Sequence[str]], np.ndarray], cap: bool) -> None:
        self._cap = cap
        self._encode = encode
        self._key_NE: np.ndarray | None = None
        self._step_N = np.zeros(0)
        self._gain_N = np.zeros(0)
        self._share_N = np.zeros(0)

    def gain(self, questions: Sequence[str], step: int) -> np.ndarray:
        """Estimated gain of reward by retrieval for each question, [Q]; 0 where nothing is known."""
        key_QE = self._encode(questions)
        if self._key_NE is None:
            return np.zeros(len(questions))
        weight_QN = (key_QE @ self._key_NE.T >= ALIKE) * 0.5 ** ((step - self._step_N) / HALF_LIFE)
        return weight_QN @ self._gain_N / (weight_QN @ self._share_N + PRIOR)

    def probability(self, questions: Sequence[str], step: int, start: float) -> np.ndarray:
        gain_Q = self.gain(questions, step)
        if self._cap:
            gain_Q = np.minimum(gain_Q, 0)
        odds_Q = np.exp(gain_Q / TEMPERATURE)
        return np.minimum(1.0, 2 * start * odds_Q / (1 + odds_Q))

    def add(
        self,
        questions: Sequence[str],
        step: int,
        reward_QG: np.ndarray,
        retrieved_QG: np.ndarray,
        n_hybrid: int,
    ) -> None:
        gain_Q = reward_QG[:, -n_hybrid:].mean(1) - reward_QG[:, :-n_hybrid].mean(1)
        share_Q = retrieved_QG[:, -n_hybrid:].mean(1)
        seen_Q = share_Q > 0
        key_QE = self._encode(questions)[seen_Q]
        old = self._key_NE
        self._key_NE = key_QE if old is None else np.concatenate([old, key_QE])
        self._step_N = np.concatenate([self._step_N, np.full(seen_Q.sum(), step)])
        self._gain_N = np.concatenate([self._gain_N, gain_Q[seen_Q]])
        self._share_N = np.concatenate([self._share_N, share_Q[seen_Q]])

"""Retrieval probability of each state by what retrieval has earned in the same state (experiment)."""

from __future__ import annotations

from collections import defaultdict

import numpy as np

HALF_LIFE, PRIOR, TEMPERATURE = 20, 4.0, 0.1


class StateBenefit:
    def __init__(self, seed: int, start: float, cap: bool) -> None:
        self.seed, self.start, self.cap = seed, start, cap
        self.sums: dict[str, np.ndarray] = {}  # text -> [n_not, n_retrieved, sum_not, sum_retrieved]
        self.open(0)

    def open(self, step: int) -> None:
        self.step = step
        self.records: dict[int, list[tuple[str, bool]]] = defaultdict(list)

    def gain(self, text: str) -> float:
        if (s := self.sums.get(text)) is None or not s[0] * s[1]:
            return 0.0
        h = s[0] * s[1] / (s[0] + s[1])
        return float((s[3] / s[1] - s[2] / s[0]) * h / (h + PRIOR))

    def probability(self, text: str) -> float:
        gain = self.gain(text)
        if self.cap:
            gain = min(gain, 0.0)
        return min(1.0, 2 * self.start / (1 + np.exp(-gain / TEMPERATURE)))

    def allows(self, row: int, text: str) -> bool:
        number = len(self.records[row])
        coin = np.random.default_rng((self.seed, self.step, row, number)).random()
        allowed = bool(coin < self.probability(text))
        self.records[row].append((text, allowed))
        return allowed

    def learn(self, reward_B: np.ndarray, group: int, hybrid: int) -> dict[int, list[float]]:
        for s in self.sums.values():
            s *= 0.5 ** (1 / HALF_LIFE)
        base_Q = reward_B.reshape(-1, group)[:, : group - hybrid].mean(1)
        used = {}
        for row, records in sorted(self.records.items()):
            used[row] = [self.probability(text) for text, _ in records]
        for row, records in sorted(self.records.items()):
            value = reward_B[row] - base_Q[row // group]
            for text, allowed in records:
                s = self.sums.setdefault(text, np.zeros(4))
                s[int(allowed)] += 1
                s[2 + int(allowed)] += value
        return used

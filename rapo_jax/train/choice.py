"""Which agent's traces each hybrid rollout reads, by what they earned on like questions.

Not in the paper. A group has on-policy and hybrid rollouts of one question. A hybrid rollout reads
the traces of one agent alone; its reward less the mean of the on-policy ones is what that agent's
traces earned there.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from rapo_jax.buffer.keys import key_text
from rapo_jax.train.buffer import key_encoder, load_buffer
from rapo_jax.types import Source

ALIKE = 0.95
"""Least inner product of the embeddings of two questions that count as alike."""
HALF_LIFE = 20
"""Steps after which a rollout counts half."""
PRIOR = 8.0
"""Rollouts that the estimate of all questions counts in that of one; those of gain 0 in the former."""
TEMPERATURE = 0.05
"""Difference of gains at which one agent is asked e times as often as another."""


class Choice:
    def __init__(
        self, encode: Callable[[Sequence[str]], np.ndarray], origins: Sequence[str],
        *, seed: int, group_size: int, n_hybrid: int,
    ) -> None:
        self._encode, self._origins = encode, tuple(origins)
        self._seed, self._group_size, self._n_hybrid = seed, group_size, n_hybrid
        self._key_NE: np.ndarray | None = None
        self._step_N = np.zeros(0)
        self._gain_NK = np.zeros((0, len(origins)))
        self._count_NK = np.zeros((0, len(origins)))
        self._drawn: np.ndarray | None = None

    def gain(self, questions: Sequence[str], step: int) -> np.ndarray:
        """Estimated gain of reward for each question and agent, [Q, K]."""
        if self._key_NE is None:
            return np.zeros((len(questions), len(self._origins)))
        weight_N = 0.5 ** ((step - self._step_N) / HALF_LIFE)
        all_K = weight_N @ self._gain_NK / (weight_N @ self._count_NK + PRIOR)
        alike_QN = (self._encode(questions) @ self._key_NE.T >= ALIKE) * weight_N
        return (alike_QN @ self._gain_NK + PRIOR * all_K) / (alike_QN @ self._count_NK + PRIOR)

    def draw(self, questions: Sequence[str], step: int) -> list[str]:
        """The agent of each row."""
        gain_QK = self.gain(questions, step)
        odds_QK = np.exp((gain_QK - gain_QK.max(1, keepdims=True)) / TEMPERATURE)
        self._share_QK = odds_QK / odds_QK.sum(1, keepdims=True)
        rng = np.random.default_rng([self._seed, step, 7919])
        uniform_QG = rng.random((len(questions), self._group_size))
        bound_QK = np.cumsum(self._share_QK, 1)[:, :-1]
        self._drawn = (uniform_QG[:, :, None] >= bound_QK[:, None]).sum(2)
        return [self._origins[k] for k in self._drawn.ravel()]

    def learn(self, groups, reward_B: np.ndarray, step: int) -> None:
        G, n = self._group_size, self._n_hybrid
        reward_QG = reward_B.reshape(-1, G)
        source_BT = np.asarray(groups.trajectory.source_BT)
        retrieved_QG = (source_BT == Source.RETRIEVED).any(1).reshape(-1, G)
        gain_QG = reward_QG - reward_QG[:, : G - n].mean(1, keepdims=True)
        of_QGK = (self._drawn[:, :, None] == np.arange(len(self._origins))) & retrieved_QG[:, :, None]
        key_QE = self._encode([q.question for q in groups.questions])
        old = self._key_NE
        self._key_NE = key_QE if old is None else np.concatenate([old, key_QE])
        self._step_N = np.concatenate([self._step_N, np.full(len(key_QE), step)])
        self._gain_NK = np.concatenate([self._gain_NK, (gain_QG[:, :, None] * of_QGK).sum(1)])
        self._count_NK = np.concatenate([self._count_NK, of_QGK.sum(1)])
        kinds: dict[str, list[np.ndarray]] = {}
        for q, share_K in zip(groups.questions, self._share_QK, strict=True):
            kinds.setdefault(getattr(q, "kind", "") or q.source, []).append(share_K)
        shown = {k: np.round(np.mean(v, 0), 2).tolist() for k, v in sorted(kinds.items())}
        print("choice", step, self._origins, shown, flush=True)


def make_choice(run) -> Choice | None:
    s = run.settings
    if s.retrieval.choice == "none" or not s.n_hybrid:
        return None
    encode, _ = key_encoder(run)
    r = s.retrieval

    def of_questions(texts: Sequence[str]) -> np.ndarray:
        return encode([key_text(text, "", mask=r.mask, max_chars=r.max_chars) for text in texts])

    origins = sorted({trace.origin for trace in load_buffer(run).step_traces})
    return Choice(
        of_questions, origins, seed=s.seed, group_size=s.rollout.group_size, n_hybrid=s.n_hybrid
    )

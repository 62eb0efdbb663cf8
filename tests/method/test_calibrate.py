"""The whole method by hand: from a tape to the shaped, clipped loss, in plain Python loops."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rapo_jax.method.calibrate import calibrate
from rapo_jax.method.objective import policy_loss, policy_loss_sums
from rapo_jax.method.tape import hybrid_mask, response_mask, retrieved_share
from rapo_jax.types import Source

Q, G, A, M, CLIP, FLOOR, DDOF = 2, 4, 0.2, 0.5, 0.28, 1e-6, 1
METHOD = {"quality": "decrease", "timing": "high", "entropy_floor": FLOOR, "a": A, "ddof": DDOF,
          "std_floor": FLOOR}  # fmt: skip
LETTERS = {"q": Source.PROMPT, "p": Source.POLICY, "t": Source.TOOL, "r": Source.RETRIEVED,
           ".": Source.PAD}  # fmt: skip
ROWS = (  # sources and steps of each row; a policy step holds the observation of its call
    ("qqppptpptppp", "000000111222"),
    ("qqppptrrrppp", "000000111222"),  # one retrieval
    ("qqpptrrpptrr", "000001122233"),  # a second one, which no policy step follows
    ("qqpp........", "000000000000"),
    ("qpppttrrpppp", "000000112222"),
    ("qpptrppt....", "000012220000"),  # a retrieved trace of one token
    ("qppppppppppp", "000000000000"),
    ("qppptppp....", "000001110000"),
)
REWARD = (1.1, 0.4, -1.0, 0.0, 0.7, 0.9, 0.0, -1.0)


@pytest.fixture(scope="module")
def tape():
    """(source, step, entropy, logp, old_logp) as lists of rows."""
    rng = np.random.default_rng(5)
    source = [[LETTERS[letter] for letter in letters] for letters, _ in ROWS]
    step = [[int(digit) for digit in digits] for _, digits in ROWS]
    shape = (len(ROWS), len(ROWS[0][0]))
    entropy = rng.uniform(0.1, 2.0, shape)
    old = -rng.exponential(1.0, shape)
    logp = old + rng.normal(0, 0.3, shape)
    return source, step, entropy.tolist(), logp.tolist(), old.tolist()


def entropies_by_hand(source, step, entropy):
    """Eq. 2: {step: mean entropy over its POLICY tokens}, and the retrieved steps, of one row."""
    of_step, retrieved = {}, set()
    for who, s, value in zip(source, step, entropy, strict=True):
        if who == Source.POLICY:
            of_step.setdefault(s, []).append(value)
        if who == Source.RETRIEVED:
            retrieved.add(s)
    return {s: sum(values) / len(values) for s, values in of_step.items()}, sorted(retrieved)


def retrieval_rewards_by_hand(entropies, retrieved):
    """Eqs. 5-7: {retrieved step: Z}; 0 where no policy step follows."""
    rewards = {}
    for s in retrieved:
        before = max((e for e in entropies if e < s), default=None)
        after = min((e for e in entropies if e > s), default=None)
        rewards[s] = 0.0
        if before is not None and after is not None:
            change = -(entropies[after] - entropies[before]) / entropies[before]
            rewards[s] = math.tanh(2 * change) * entropies[before]
    return rewards


def advantages_by_hand(values):
    """Eq. 9: group by group, (value - mean) / (sample std + floor)."""
    advantages = []
    for start in range(0, len(values), G):
        group = values[start : start + G]
        mean = sum(group) / G
        std = math.sqrt(sum((value - mean) ** 2 for value in group) / (G - DDOF))
        advantages += [(value - mean) / (std + FLOOR) for value in group]
    return advantages


def loss_by_hand(source, logp, old, advantages, shares):
    """Eqs. 8 and 11: the mean over rows of the mean over their POLICY tokens, negated."""
    total = 0.0
    for b, row in enumerate(source):
        terms = []
        for t, who in enumerate(row):
            if who != Source.POLICY:
                continue
            shaped = (1 + M * shares[b]) * math.exp(logp[b][t] - old[b][t])
            clipped = min(max(shaped, 1 - CLIP), 1 + CLIP)
            terms.append(min(shaped * advantages[b], clipped * advantages[b]))
        total += sum(terms) / len(terms)
    return -total / len(source)


def test_every_stage_from_the_tape_to_the_loss_is_that_of_the_paper(tape):
    source, step, entropy, logp, old = tape
    steps = [entropies_by_hand(*row) for row in zip(source, step, entropy, strict=True)]
    z = [retrieval_rewards_by_hand(*row) for row in steps]
    z_ret = [sum(row.values()) / len(row) if row else 0.0 for row in z]
    a_ret, a_acc = advantages_by_hand(z_ret), advantages_by_hand(list(REWARD))
    advantages = [(1 + A * ret) * acc for ret, acc in zip(a_ret, a_acc, strict=True)]
    response = (Source.POLICY, Source.TOOL, Source.RETRIEVED)
    shares = [row.count(Source.RETRIEVED) / sum(who in response for who in row) for row in source]
    assert shares[1] == 3 / 10 and shares[0] == 0  # policy + tool + retrieved, prompt not
    assert len(z[2]) == 2 and z[2][3] == 0 and z_ret[2] == z[2][1] / 2 != 0
    assert len({round(value, 9) for value in a_ret[:G]}) > 1  # the retrieval reward has a say

    with jax.enable_x64(True):
        source_BT, step_BT = jnp.array(source, jnp.int32), jnp.array(step, jnp.int32)
        calibration = calibrate(
            jnp.array(entropy), source_BT, step_BT, jnp.array(REWARD), group_size=G, num_steps=6,
            **METHOD,
        )  # fmt: skip
        for b, (entropies, _) in enumerate(steps):
            for s in range(6):
                assert calibration.entropy_BS[b, s] == pytest.approx(entropies.get(s, 0), abs=1e-12)
                by_hand = z[b].get(s, 0)
                assert calibration.retrieval_reward_BS[b, s] == pytest.approx(by_hand, abs=1e-12)
        np.testing.assert_allclose(calibration.retrieval_reward_B, z_ret, atol=1e-12)
        np.testing.assert_allclose(calibration.advantage_B, advantages, atol=1e-9)
        np.testing.assert_allclose(calibration.retrieved_share_B, shares, rtol=1e-15)

        arrays = (jnp.array(logp), jnp.array(old), source_BT == Source.POLICY)
        of_rows = (calibration.advantage_B, calibration.retrieved_share_B)
        how = {"m": M, "clip_low": CLIP, "clip_high": CLIP, "aggregation": "sequence_mean"}
        loss, metrics = policy_loss(*arrays, *of_rows, **how)
        by_hand = loss_by_hand(source, logp, old, advantages, shares)
        assert loss == pytest.approx(by_hand, rel=1e-9)
        assert 0 < metrics["clipped"] < 1  # some tokens are clipped, some are not
        loss_sum, weight, _ = policy_loss_sums(*arrays, *of_rows, jnp.ones(Q * G, bool), **how)
        assert loss_sum / weight == loss  # what training calls


def test_the_share_of_retrieved_tokens_counts_policy_tool_and_retrieved_tokens():
    rows = ["qqpptrr.", "qqqqqq..", "qprtrtr.", "qpppt..."]
    source_BT = np.array([[LETTERS[letter] for letter in row] for row in rows], np.int32)
    np.testing.assert_allclose(retrieved_share(source_BT), [2 / 5, 0, 3 / 6, 0], rtol=1e-6)
    wanted = [[letter in "ptr" for letter in row] for row in rows]
    np.testing.assert_array_equal(response_mask(source_BT), wanted)


def test_the_last_rollouts_of_each_question_are_the_hybrid_ones():
    assert hybrid_mask(2, group_size=3, n_hybrid=1).tolist() == [False, False, True] * 2
    assert not hybrid_mask(2, group_size=3, n_hybrid=0).any()

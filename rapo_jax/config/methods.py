"""The training methods, and the published settings of each; see docs/methods.md.

`train.methods` joins each to its functions. The settings apply to keys that have their defaults in
the config file and that neither an override file nor a flag sets.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from rapo_jax.io.files import Json


class MethodSettings(NamedTuple):
    """What a method is, and its settings."""

    meaning: str
    hybrid: bool = False
    """Whether `rollout.n_hybrid` rollouts of a group may retrieve."""
    buffer: bool = False
    """Whether it needs the Step-Trace Buffer."""
    samples: bool = True
    """Whether training samples rollouts."""
    imitates_first: bool = False
    """Whether the buffer's trajectories are imitated before RL."""
    takes_agent_tapes: bool = False
    """Whether the last row of a group is a trajectory of the buffer, where there is one."""
    replays: bool = False
    """Whether past groups complete a batch."""
    compares_steps: bool = False
    """Whether steps are compared, so that a group of equal rewards can have advantages, too."""
    settings: Mapping[str, Json] = {}
    """Dotted key -> value, where it is not the default."""

    @property
    def off_policy(self) -> bool:
        """Whether groups hold rows that the present policy did not sample."""
        return self.takes_agent_tapes or self.replays


METHODS = {
    "rapo": MethodSettings("hybrid-policy rollouts, calibrated gradient", hybrid=True, buffer=True),
    "grpo": MethodSettings("group-relative advantages alone: RAPO without hybrid rollouts"),
    "dapo": MethodSettings(
        "GRPO with a higher upper clip, a mean over tokens, resampled groups, a penalty of length",
        settings={
            "rl.clip_low": 0.2,
            "rl.clip_high": 0.28,
            "rl.aggregation": "token_mean",
            "rl.resample": 10,
            "rl.overlong": 0.2,
        },
    ),
    "gppo": MethodSettings(
        "GRPO whose clipped tokens keep a bounded gradient",
        settings={"rl.clipping": "gppo", "rl.dual_clip": 3.0, "rl.aggregation": "token_mean"},
    ),
    "gigpo": MethodSettings(
        "GRPO, and steps from the same state compared with each other", compares_steps=True
    ),
    "tree_grpo": MethodSettings(
        "GRPO over trees of rollouts, and within each tree",
        settings={"rollout.branching": "random", "rollout.tree_rows": 3, "rl.kl": 0.001},
    ),
    "arpo": MethodSettings(
        "GRPO on rollouts that fork after observations where the policy is uncertain",
        settings={"rollout.tree_rows": 2},
    ),
    "aepo": MethodSettings(
        "ARPO with fewer forks in a row, and advantages and a clip that keep uncertain tokens",
        settings={
            "rollout.tree_rows": 4,  # in a tree of 2 no row forks twice
            "rollout.branch_penalty": 0.05,
            "rl.clipping": "aepo",
            "rl.dual_clip": 3.0,
            "rl.aggregation": "token_mean",
        },
    ),
    "luffy": MethodSettings(
        "GRPO whose groups hold one trajectory of the buffer",
        buffer=True,
        takes_agent_tapes=True,
        settings={"rl.aggregation": "token_mean"},
    ),
    "rollout_replay": MethodSettings(
        "GRPO on fresh groups and on past ones",
        replays=True,
        settings={
            "rl.replay_share": 0.5,
            "rl.clip_low": 0.2,
            "rl.clip_high": 0.2,
            "rl.aggregation": "token_mean",
        },
    ),
    "sft": MethodSettings("imitation of the buffer's trajectories", buffer=True, samples=False),
    "sft_grpo": MethodSettings(
        "imitation of the buffer's trajectories, then GRPO", buffer=True, imitates_first=True
    ),
}

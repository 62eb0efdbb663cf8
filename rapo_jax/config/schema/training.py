"""Keys of training: rollouts, the cold start, the optimizer and RL."""

from __future__ import annotations

import dataclasses

from rapo_jax.config.keys import fraction, key

NO_CLIPPING = "0 would make every gradient 0; a large number, such as 1e9, clips nothing"


@dataclasses.dataclass(frozen=True)
class RolloutSettings:
    """Rollouts of one training step."""

    questions: int = key(32, "questions of a training step", paper="tab. 4", at_least=1)
    group_size: int = key(
        16,
        "G, rollouts of a question",
        paper="sec. 4.1.2",
        at_least=2,
        remedy="a group-relative advantage needs at least 2 rollouts per question",
    )
    n_hybrid: int = key(8, "rollouts of a group that may retrieve", paper="sec. 4.1.2")
    tree_rows: int = key(
        1,
        "rollouts per tree: consecutive rollouts of a group that may share a prefix; divides "
        "group_size; 1 = independent rollouts",
        at_least=1,
    )
    branching: str = key(
        "entropy",
        "where rollouts of a tree begin (docs/methods.md)",
        choices={
            "entropy": "after an observation of another one, by the policy's entropy (ARPO, AEPO)",
            "random": "at boundaries of the first one, after its end (Tree-GRPO)",
        },
    )
    branch_probability: float = fraction(0.5, "chance of a fork where the entropy has not changed")
    branch_entropy: float = key(
        0.2, "weight of the entropy rise since the first step in the fork rule", unit="1 / ln V"
    )
    branch_penalty: float = fraction(
        0.0,
        "lambda: the fork score is multiplied by max(0, 1 - lambda l) after l consecutive forks "
        "(AEPO)",
    )
    max_calls: int = key(3, "most tool calls of a trajectory", at_least=0)
    prompt_tokens: int = key(1536, "longest prompt", unit="tokens", at_least=1)
    step_tokens: int = key(1024, "longest step of the policy", unit="tokens", at_least=1)
    observation_tokens: int = key(
        512,
        "longest observation, tags included; longer ones are truncated",
        unit="tokens",
        at_least=1,
    )
    condense_tokens: int = key(
        1024,
        "protocol='search_o1': longest text that the model makes of a search; its prompt has the "
        "rest of max_tokens",
        unit="tokens",
        at_least=1,
    )
    retrieved_tokens: int = key(
        1024,
        "longest retrieved trace, tags included; longer ones are truncated",
        unit="tokens",
        at_least=1,
    )
    max_tokens: int = key(5632, "longest trajectory, prompt included", unit="tokens")
    temperature: float = key(1.0, "sampling temperature in training", at_least=0)
    slots: int = key(
        0,
        "rollouts at a time, of all devices together; each slot holds a KV cache and takes the "
        "next rollout when its own has ended; 0 = as many as rollouts",
        at_least=0,
        per_call=True,
    )
    absorb_chunk: int = key(
        256,
        "chunk size for the prefill of observations and traces (`read`); smaller takes less memory",
        unit="tokens",
        at_least=1,
        per_call=True,
    )
    driver: str = key(
        "jit",
        "what repeats the turns of a rollout",
        choices={"jit": "one jitted program", "host": "a Python loop over the same turn"},
        per_call=True,
    )

    @property
    def most_steps(self) -> int:
        """Steps of a row: those of the policy, and a retrieved trace after each."""
        return 2 * (self.max_calls + 1)


@dataclasses.dataclass(frozen=True)
class SftSettings:
    """The cold start: imitation of the task's scripted demonstrations."""

    folder: str = key("", "folder of the cold start, made unless it exists; '' = WORKDIR/coldstart")
    steps: int = key(1000, "length of training", unit="updates", at_least=1)
    batch: int = key(64, "trajectories of an update", at_least=1)
    examples: int = key(8000, "demonstrated trajectories", at_least=1)
    learning_rate: float = key(4e-3, "peak learning rate", at_least=0)
    warmup: int = key(50, "linear warm-up of the learning rate", unit="updates", at_least=0)
    clip_norm: float = key(1.0, "largest norm of the whole gradient", above=0, remedy=NO_CLIPPING)
    checkpoint_every: int = key(
        200, "time between checkpoints", unit="updates", at_least=1, per_call=True
    )
    inject_share: float = fraction(0.5, "share of trajectories with random retrieved traces")
    inject: float = fraction(0.5, "in these: chance of such a trace at a step boundary")
    follow: float = fraction(0.97, "chance that the demonstrator follows such a trace")
    weak_first: float = fraction(
        0.5, "hidden or blind words: chance that the first decision is right"
    )
    weak_habit: float = fraction(
        0.0,
        "chance of a word's wrong habit, else random: of later decisions of hidden words, of all "
        "of mastered words",
    )
    weak_stop: float = fraction(
        0.3, "words that are not known: chance to stop, at each step from the third on"
    )
    gate_one_hop: float = fraction(
        0.0, "least accuracy on the task's easiest kind, at temperature 1; below it the run stops"
    )
    gate_follow: float = fraction(
        0.0, "least share of retrieved steps that the policy follows; below it the run stops"
    )


@dataclasses.dataclass(frozen=True)
class OptimizerSettings:
    """AdamW in RL; the cold start takes b1, b2 and eps from here."""

    learning_rate: float = key(1e-6, "peak learning rate", at_least=0)
    warmup: int = key(0, "linear warm-up of the learning rate", unit="updates", at_least=0)
    schedule: str = key(
        "constant",
        "learning rate after the warm-up",
        choices={"constant": "stays", "linear": "falls to 0", "cosine": "falls to 0"},
    )
    clip_norm: float = key(1.0, "largest norm of the whole gradient", above=0, remedy=NO_CLIPPING)
    b1: float = key(0.9, "decay of Adam's first moment", at_least=0, at_most=1)
    b2: float = key(0.999, "decay of Adam's second moment", at_least=0, at_most=1)
    eps: float = key(1e-8, "added to the root of Adam's second moment", at_least=0)
    weight_decay: float = key(0.0, "decoupled weight decay", at_least=0)


@dataclasses.dataclass(frozen=True)
class RlSettings:
    """Objective and updates of every method (paper, sec. 4.2; docs/methods.md)."""

    steps: int = key(300, "training steps, each one rollout batch", at_least=1)
    m: float = key(
        0.05,
        "strength of importance shaping; 0 = w/o RIS; m = a = 0: w/o RPO",
        paper="eq. 8",
        at_least=0,
    )
    a: float = key(
        0.2,
        "weight of the retrieval reward in the advantage; 0 = w/o RR",
        paper="eq. 10",
        at_least=0,
    )
    quality: str = key(
        "decrease",
        "what makes a retrieval good",
        paper="eqs. 5-6, tab. 3",
        choices={
            "decrease": "the entropy falls",
            "increase": "the entropy rises",
            "off": "nothing, g = 1 (w/o RQ)",
        },
    )
    timing: str = key(
        "high",
        "when a retrieval counts more",
        paper="eq. 7, tab. 3",
        choices={
            "high": "at high entropy before it",
            "low": "at low entropy before it",
            "off": "always the same, Z = g (w/o RT)",
        },
    )
    retrieved_traces: str = key(
        "read",
        "what the update makes of retrieved traces (docs/methods.md)",
        choices={
            "read": "it reads them, as the rollout did",
            "removed": "rows of positive advantage are trained without them: what they led to is "
            "learned as the policy's own decision",
        },
    )
    clip_low: float = key(0.28, "ratios are clipped at 1 - clip_low", paper="eq. 11", at_least=0)
    clip_high: float = key(0.28, "ratios are clipped at 1 + clip_high", paper="eq. 11", at_least=0)
    clipping: str = key(
        "ppo",
        "which tokens beyond a bound of the clip keep a gradient",
        choices={
            "ppo": "none",
            "gppo": "all, that of the bound",
            "aepo": "those above the upper bound, that of the bound",
        },
    )
    dual_clip: float = key(
        0.0,
        "c: the loss of a token of negative advantage A is at most -c A; 0 = no such bound",
        at_least=0,
    )
    overlong: float = fraction(
        0.0,
        "share of the longest response within which its reward falls by 1 towards the end (DAPO); "
        "0 = not",
    )
    resample: int = key(
        0,
        "rollout batches of further questions, at most, that a step samples in place of groups of "
        "equal rewards (DAPO)",
        at_least=0,
    )
    step_weight: float = key(1.0, "omega, weight of the advantage of a step (gigpo)", at_least=0)
    step_discount: float = fraction(0.95, "discount of a reward by each step after one (gigpo)")
    step_std: bool = key(False, "divide both advantages of gigpo by the std of their groups")
    luffy_gamma: float = key(
        0.1, "gamma: a buffer's token of probability p weighs p / (p + gamma) (luffy)", above=0
    )
    entropy_weight: float = key(
        0.2, "weight of a token's standardised entropy in its advantage (aepo)", at_least=0
    )
    replay_share: float = fraction(
        0.0, "share of a step's groups that are past ones, from the second epoch (rollout_replay)"
    )
    replay_groups: int = key(512, "past groups that are kept (rollout_replay)", at_least=1)
    imitation_steps: int = key(
        0, "training steps of imitation before RL (sft_grpo); 0 = as many as rl.steps", at_least=0
    )
    kl: float = key(
        0.0,
        "beta, weight of the KL penalty to the policy that RL starts from; 0 = none",
        paper="eq. 11",
        at_least=0,
    )
    aggregation: str = key(
        "sequence_mean",
        "how the loss of the policy's tokens is averaged",
        paper="eq. 11",
        choices={
            "sequence_mean": "over the tokens of a trajectory, then over trajectories",
            "token_mean": "over all tokens (DAPO)",
            "sequence_sum": "summed over a trajectory, averaged over trajectories",
        },
    )
    ddof: int = key(
        1,
        "standard deviations divide by n - ddof",
        paper="eqs. 9-10",
        at_least=0,
        at_most=1,
        remedy="0 or 1",
    )
    std_floor: float = key(1e-6, "added to both standard deviations", paper="eqs. 9-10", at_least=0)
    entropy_floor: float = key(
        1e-6,
        "least H_before in the denominator",
        unit="nats",
        paper="eq. 5",
        above=0,
        remedy="H_before may be 0 and divides (eq. 5): a small positive number of nats, such as "
        "1e-6",
    )
    epochs: int = key(1, "passes over a rollout batch", at_least=1)
    mini_batches: int = key(2, "updates of a pass", at_least=1)
    micro_tokens: int = key(
        65_536,
        "size of one forward and backward pass, padding included",
        unit="tokens",
        at_least=1,
        per_call=True,
    )
    buckets: tuple[int, ...] = key(
        (1024, 2048, 3072, 4096, 5632),
        "widths that rows are padded to in the update",
        unit="tokens",
        per_call=True,
    )

"""The paper's studies: variants, measures and statements; `launch/studies.py` runs them.

The sources are those of arXiv 2603.03078. Settings are of one scale, that of the synthetic tasks: a
config whose texts are longer needs other numbers at *a whole trajectory*.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial

from rapo_jax.report import diversity
from rapo_jax.report.studies import Claim, Study, with_equal_costs
from rapo_jax.report.study_maps import Place, draw_map
from rapo_jax.report.study_pictures import draw_curves, draw_variants

Config = Mapping[str, object]
RAPO, GRPO = "RAPO", "GRPO"
BOTH = {RAPO: "method=rapo", GRPO: "method=grpo"}
REMOVED = "RAPO, traces removed"
ON_POLICY, HYBRID = diversity.KINDS.values()


def both_and(rapo_with: Mapping[str, str]) -> Callable[[Config], Mapping[str, str]]:
    """RAPO, GRPO, and RAPO with one more setting for each label."""
    more = {label: f"method=rapo,{settings}" for label, settings in rapo_with.items()}
    return lambda config: BOTH | more


NOISE = (0.2, 0.4, 0.6, 0.8, 1.0)
NOISY = {f"{rate:.0%} random traces": f"retrieval.noise={rate}" for rate in NOISE}
ERRORS = (0.0, 0.2, 0.3, 0.5, 0.7)
TEACHERS = {f"teacher errs {rate:.0%}": f"buffer.expert_error={rate}" for rate in ERRORS}
STARTS = {
    "": "",
    "better start": "sft.weak_first=0.9,sft.weak_habit=0.2",
    "worse start": "sft.weak_first=0.1,sft.weak_habit=0.8",
}
"""The demonstrator of the cold start at words that it does not know; "" is that of the config."""
PLACES = [
    Place(name, teacher, start)
    for start in STARTS
    for teacher in ("", *list(TEACHERS)[::2])
    for name in ((RAPO, REMOVED, "LUFFY", "SFT", "SFT, then GRPO") if teacher else (GRPO,))
]
ABLATIONS = {
    "w/o RPO": "rl.m=0,rl.a=0",
    "w/o RR": "rl.a=0",
    "w/o RIS": "rl.m=0",
    "w/o RQ": "rl.quality=off",
    "w/o RT": "rl.timing=off",
    "w/ TO": "retrieval.unit=trajectory,rollout.retrieved_tokens=80",
}
CORNERS = {
    "entropy increase": "rl.quality=increase",
    "low-entropy timing": "rl.timing=low",
    "both": "rl.quality=increase,rl.timing=low",
}
OF_STARTS = {place.label: Place(GRPO, "", place.start).label for place in PLACES}
"""Each place is compared with GRPO from its own start."""


def imitation_first(config: Config) -> str:
    """Imitation and then GRPO, which share the updates of the other methods."""
    half = int(str(config["rl.steps"])) // 2
    return f"method=sft_grpo,rl.steps={half},rl.imitation_steps={half}"


def methods(config: Config) -> Mapping[str, str]:
    """All training methods.

    Tree-GRPO's trees have three leaves as published, where they divide the group, else four.
    """
    leaves = 3 if int(str(config["rollout.group_size"])) % 3 == 0 else 4
    return BOTH | {
        "DAPO": "method=dapo",
        "GPPO": "method=gppo",
        "GiGPO": "method=gigpo",
        "Tree-GRPO": f"method=tree_grpo,rollout.tree_rows={leaves}",
        "ARPO": "method=arpo",
        "AEPO": "method=aepo",
        "RolloutReplay": "method=rollout_replay",
        "LUFFY": "method=luffy,buffer.split=train",
        "SFT": "method=sft",
        "SFT, then GRPO": imitation_first(config),
    }


def retrieval(config: Config) -> Mapping[str, str]:
    """RAPO, parts of it, and other methods that use the same traces or rollouts."""
    others = ("DAPO", "RolloutReplay", "LUFFY", "SFT", "SFT, then GRPO")
    each = methods(config)
    return (
        BOTH
        | {name: each[name] for name in others}
        | {
            "hybrid rollouts alone": "method=rapo,rl.m=0,rl.a=0",
            "random traces": "method=rapo,retrieval.noise=1.0",
        }
    )


def removed(config: Config) -> Mapping[str, str]:
    """RAPO whose updates do not read the traces, and the other uses of the same traces."""
    each = methods(config)
    return (
        {REMOVED: "method=rapo,rl.retrieved_traces=removed"}
        | BOTH
        | {name: each[name] for name in ("LUFFY", "SFT", "SFT, then GRPO")}
    )


def by_place(config: Config) -> Mapping[str, str]:
    """The settings of each place of the map."""
    of_method = {
        **BOTH,
        REMOVED: "method=rapo,rl.retrieved_traces=removed",
        "LUFFY": "method=luffy,buffer.split=train",
        "SFT": "method=sft",
        "SFT, then GRPO": imitation_first(config),
    }
    settings = {
        place.label: (of_method[place.method], TEACHERS.get(place.teacher), STARTS[place.start])
        for place in PLACES
    }
    return {label: ",".join(filter(None, each)) for label, each in settings.items()}


def parameters(config: Config) -> Mapping[str, str]:
    """m, a and N_hybrid, the latter in quarters of the group."""
    G = int(str(config["rollout.group_size"]))
    settings = {f"m = {m}": f"rl.m={m}" for m in (0.1, 0.2)}
    settings |= {f"a = {a}": f"rl.a={a}" for a in (0.1, 0.4)}
    settings |= {
        f"N_hybrid = {n}": f"rollout.n_hybrid={n}"
        for n in (G // 4, 3 * G // 4, G)
        if n != config["rollout.n_hybrid"]
    }
    return both_and(settings)(config)


STUDIES = {
    "methods": Study(
        "The methods of the paper's table", "tab. 1", methods, GRPO,
        ("accuracy", "equal_cpu", "equal_tokens", "sampled", "calls", "cpu_s"),
        draw_variants,
        tuple(
            Claim(f"RAPO is better than {name}", "accuracy", RAPO, name)
            for name in (
                GRPO, "DAPO", "GPPO", "GiGPO", "Tree-GRPO", "ARPO", "AEPO", "RolloutReplay",
                "LUFFY", "SFT",
            )
        ),
        collect=partial(with_equal_costs, baseline=GRPO),
    ),
    "efficiency": Study(
        "What a step costs", "fig. 3, 11", both_and({}), GRPO,
        ("cpu_s", "rollout_s", "update_s", "tokens", "calls"), draw_variants,
        tuple(
            Claim(f"GRPO has more {what}", measure, GRPO, RAPO)
            for measure, what in (
                ("cpu_s", "time (1.2 ×)"), ("rollout_s", "rollout time"),
                ("update_s", "update time"), ("tokens", "tokens"), ("calls", "tool calls"),
            )
        ),
    ),
    "diversity": Study(
        "On-policy and hybrid rollouts", "fig. 4", lambda config: {RAPO: "method=rapo"}, ON_POLICY,
        ("clusters", "variance", "rollout_reward", "rollout_tokens"), diversity.draw,
        (
            Claim("hybrid rollouts form more clusters", "clusters", HYBRID, ON_POLICY),
            Claim("they have more reward", "rollout_reward", HYBRID, ON_POLICY),
            Claim("they have fewer tokens", "rollout_tokens", ON_POLICY, HYBRID),
        ),
        collect=diversity.collect,
    ),
    "teachers": Study(
        "Weaker off-policy agents", "fig. 5", both_and(TEACHERS), GRPO,
        ("accuracy",), draw_variants,
        tuple(
            Claim("RAPO leads GRPO with every agent", "accuracy", label, GRPO) for label in TEACHERS
        ),
    ),
    "retrieval": Study(
        "RAPO beside other uses of the same traces and rollouts", "tab. 1, fig. 6, 7", retrieval,
        GRPO, ("accuracy", "equal_cpu", "equal_tokens", "sampled", "cpu_s"), draw_variants,
        tuple(
            Claim(f"RAPO is better than {name}", "accuracy", RAPO, name)
            for name in (
                GRPO, "DAPO", "RolloutReplay", "LUFFY", "SFT", "hybrid rollouts alone",
                "random traces",
            )
        ),
        collect=partial(with_equal_costs, baseline=GRPO),
    ),
    "removed": Study(
        "RAPO without the traces in its updates", "not in the paper", removed, REMOVED,
        ("accuracy", "equal_cpu", "equal_tokens", "sampled", "cpu_s"), draw_variants,
        collect=partial(with_equal_costs, baseline=GRPO),
    ),
    "map": Study(
        "Which method for which start and teacher", "not in the paper", by_place, GRPO,
        ("accuracy", "equal_cpu"), partial(draw_map, places=PLACES),
        collect=partial(with_equal_costs, baseline=GRPO, own_baselines=OF_STARTS),
        own_baselines=OF_STARTS,
    ),
    "noise": Study(
        "Random traces", "fig. 6", both_and(NOISY), GRPO,
        ("accuracy",), draw_variants,
        (
            *(Claim("RAPO leads GRPO at every rate", "accuracy", label, GRPO) for label in NOISY),
            Claim("random traces cost accuracy", "accuracy", RAPO, "100% random traces"),
        ),
    ),
    "ablation": Study(
        "What each part adds", "fig. 7", both_and(ABLATIONS), GRPO,
        ("accuracy",), draw_variants,
        tuple(Claim(f"RAPO leads {label}", "accuracy", RAPO, label) for label in ABLATIONS),
    ),
    "reward": Study(
        "Quality and timing of the retrieval reward", "tab. 3",
        both_and({"w/o RR": "rl.a=0"} | CORNERS), GRPO,
        ("accuracy",), draw_variants,
        tuple(
            Claim(f"RAPO leads {label}", "accuracy", RAPO, label) for label in ("w/o RR", *CORNERS)
        ),
    ),
    "parameters": Study(
        "m, a and N_hybrid", "fig. 8", parameters, GRPO, ("accuracy",), draw_variants,
    ),
    "dynamics": Study(
        "Reward and entropy over training", "fig. 9, 10", both_and({}), GRPO,
        ("reward", "entropy"), draw_curves,
        (Claim("RAPO ends at a higher reward", "reward", RAPO, GRPO),),
    ),
}  # fmt: skip

"""Numbers of the studies: each measure is of its own metric, each statement of its own variants."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path

import numpy as np
import pytest

from rapo_jax.config import KEYS
from rapo_jax.report import diversity
from rapo_jax.report.runs import RunFiles
from rapo_jax.report.studies import (
    MEASURES,
    Claim,
    Difference,
    Study,
    measured,
    verdict,
    with_equal_costs,
)
from rapo_jax.report.study_maps import Place, _draw_method, draw_map
from rapo_jax.report.study_pages import Numbers, claims_table, numbers_of, read_numbers, table
from rapo_jax.report.study_pictures import draw_curves, draw_variants
from rapo_jax.report.study_table import ABLATIONS, NOISY, STARTS, STUDIES, imitation_first

FINISHED = {"accuracy_after": 0.5}


def run_of(columns, *, seed=0, config=None, result=FINISHED):
    """A run whose metrics have these values, one for each step; the numbers of steps are from 0."""
    steps = [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
    rows = [{"step": t} | row for t, row in enumerate(steps)]
    return RunFiles(Path(f"run{seed}"), {"seed": seed} | (config or {}), {"rl": rows}, result)


def test_each_measure_of_a_run_is_of_its_own_metric():
    n = 10
    rng = np.random.default_rng(0)
    names = (
        "reward/mean", "entropy/policy", "rollout/policy_tokens", "rollout/tool_calls",
        "time/rollout", "time/update", "time/host", "time/step", "rollout/sampled_tokens",
    )  # fmt: skip
    columns = {name: rng.uniform(1, 9, n) for name in names}
    columns["time/rollout"][0] = columns["time/update"][0] = 1000.0  # compiling
    columns["cpu/total"] = np.cumsum(rng.uniform(1, 9, n))
    wanted = {
        "accuracy": 0.5,
        "reward": columns["reward/mean"][-3:].mean(),  # a quarter of 10 steps, rounded up
        "entropy": columns["entropy/policy"].mean(),
        "tokens": columns["rollout/policy_tokens"].mean(),
        "calls": columns["rollout/tool_calls"].mean(),
        "rollout_s": np.median(columns["time/rollout"]),
        "update_s": np.median(columns["time/update"]),
        "cpu_s": columns["cpu/total"][-1] / n,
        "sampled": columns["rollout/sampled_tokens"].mean(),
    }
    run = run_of({name: x.tolist() for name, x in columns.items()})
    found = measured({"x": [run]}, list(wanted))["x"]
    for name, value in wanted.items():
        assert found[name] == {0: pytest.approx(value)}, name
    assert wanted.keys() == {name for name, measure in MEASURES.items() if measure.of}


def curve_of(seed, *, cpu, tokens):
    """Measures 0, 0.1, 0.2, 0.3 before the steps, each of which costs `cpu` and `tokens`."""
    steps = range(4)
    return run_of(
        {
            "heldout/accuracy": [0.1 * t for t in steps],
            "cpu/total": [cpu * (t + 1) for t in steps],
            "rollout/sampled_tokens": [tokens] * 4,
            "time/step": [1.0] * 4,
        },
        seed=seed,
    )


def test_equal_tokens_are_those_of_the_baseline_and_equal_cpu_is_its_cpu_time():
    runs = {
        "base": [curve_of(0, cpu=1.0, tokens=30.0)],
        "ours": [curve_of(0, cpu=2.0, tokens=90.0)],
    }
    ours = with_equal_costs(runs, ("accuracy",), baseline="base")["ours"]
    # the base had spent 3 CPU-seconds and 90 tokens before its last step
    assert ours["equal_cpu"] == {0: pytest.approx(0.15)}
    assert ours["equal_tokens"] == {0: pytest.approx(0.1)}


def test_a_variant_with_a_baseline_of_its_own_is_compared_at_the_costs_of_that_one():
    runs = {
        "base": [curve_of(0, cpu=1.0, tokens=30.0)],
        "worse base": [curve_of(0, cpu=2.0, tokens=60.0)],
        "worse ours": [curve_of(0, cpu=4.0, tokens=60.0)],
    }
    own = {"worse ours": "worse base"}
    found = with_equal_costs(runs, (), baseline="base", own_baselines=own)["worse ours"]
    assert found["equal_cpu"] == {0: pytest.approx(0.15)}  # after 6 CPU-seconds, not after 3
    assert found["equal_tokens"] == {0: pytest.approx(0.3)}


@pytest.mark.parametrize("bounds", [(0.0, 0.2), (-0.2, 0.0), (0.0, 0.0), (math.nan, math.nan)])
def test_an_interval_that_touches_0_decides_nothing(bounds):
    assert verdict(Difference((0.1, *bounds), 0.1, 2)) == "undecided"


STUDY = Study(
    "Two", "fig. 0", lambda config: {}, "b", ("accuracy", "reward"), draw_variants,
    (Claim("a has more reward", "reward", "a", "b"),),
)  # fmt: skip


def test_a_row_has_the_seeds_of_the_measure_that_most_runs_have_and_a_claim_its_own_measure():
    values = {
        "a": {"accuracy": {0: 0.7, 1: 0.8}, "reward": {0: 2.0}},
        "b": {"accuracy": {0: 0.9, 1: 0.9}, "reward": {0: 1.5}},
    }
    assert table(STUDY, values).splitlines()[2].startswith("| a | 2 | 75.0 ± 7.1 | 2.000 | −15.0 [")
    assert "| reward, last quarter | a − b | +0.500 | undecided |" in claims_table(STUDY, values)


def test_only_finished_runs_name_their_commit_and_fewer_flags_are_other_ones(tmp_path):
    done = run_of({}, config={"commit": "a" * 40})
    begun = run_of({}, config={"commit": "b" * 40}, seed=1, result={})
    assert numbers_of((), {}, [done, begun], {}).commits == {0: ["a" * 7]}
    numbers = Numbers(["--config.rl.m=0"], {}, {}, {})
    (tmp_path / "two.json").write_text(json.dumps(numbers._asdict()))
    with pytest.raises(ValueError, match="is of --config.rl.m=0, this study of --config.rl.m=0 --"):
        read_numbers(tmp_path / "two.json", ["--config.rl.m=0", "--config.rl.a=0"], {})


def panels(file, titles):
    """The ticks of each panel of a picture, as numbers; the title of a panel follows its ticks."""
    texts = re.findall(r"<text[^>]*>([^<]*)</text>", file.read_text())
    ends = [texts.index(title) for title in titles]
    parts = [texts[start:end] for start, end in zip([0, *ends], ends, strict=False)]
    return [[float(x.replace("−", "-")) for x in part if re.fullmatch(r"−?[\d.]+", x)]
            for part in parts]  # fmt: skip


def test_a_picture_of_variants_has_95_percent_intervals_in_the_unit_of_each_measure(tmp_path):
    values = {"a": {"accuracy": {0: 0.5, 1: 0.7}, "reward": {0: 2.0, 1: 2.0}}}
    draw_variants({}, values, ("accuracy", "reward"), tmp_path / "two.svg")
    names = [MEASURES[name].name for name in ("accuracy", "reward")]
    accuracy, reward = panels(tmp_path / "two.svg", names)
    # t(0.975) of one degree of freedom is tan(0.475 pi): 60 % ± 127; that of 90 % is ± 63
    half = math.tan(0.475 * math.pi) * 100 * np.std([0.5, 0.7], ddof=1) / math.sqrt(2)
    assert 60 - half < min(accuracy) < 0.6 * (60 - half) and max(accuracy) > 100
    assert max(reward) < 3


def test_the_curves_of_reward_and_entropy_are_in_their_own_panels(tmp_path):
    run = run_of({"reward/mean": [0.5, 0.6], "entropy/policy": [30.0, 40.0]})
    draw_curves({"a": [run]}, {}, (), tmp_path / "two.svg")
    reward, entropy = panels(
        tmp_path / "two.svg", ["outcome reward", "entropy of the policy, nats"]
    )
    assert 0.6 in reward and 40 in entropy


class Axes:
    """Notes what is drawn."""

    def __init__(self):
        self.lines, self.level = [], None

    def plot(self, *points, label=None, **style):
        if label is not None:
            self.lines.append((label, points[0]))

    def axhline(self, level, **style):
        self.level = level


def test_a_method_of_the_map_is_drawn_at_the_means_of_its_seeds():
    axes = Axes()
    _draw_method(axes, "SFT", [[1.0, 2.0, 6.0], [], [4.0]], [], colour="C0")
    assert axes.lines == [("SFT", [3.0, pytest.approx(math.nan, nan_ok=True), 4.0])]
    _draw_method(axes, "GRPO", [], [1.0, 2.0, 6.0], colour="C1")
    assert axes.level == 3.0


def test_a_panel_of_the_map_has_the_values_of_its_own_start_in_percent(tmp_path):
    here = [Place("GRPO", "", ""), Place("SFT", "teacher errs 0%", "")]
    there = [place._replace(start="worse start") for place in here]
    values = {place.label: {"accuracy": {0: 0.2 + 0.1 * n}} for n, place in enumerate(here)}
    values |= {place.label: {"accuracy": {}} for place in there}
    drawn = []
    for name, places in (("one", here), ("two", here + there)):
        draw_map({}, values, ("accuracy",), tmp_path / name, places=places)
        text = (tmp_path / name).read_text()
        markers = re.findall(r"<use[^>]*#ff7f0e", text)  # in the second method's colour
        drawn.append((text.count("stroke-dasharray"), len(markers)))
        ticks = panels(tmp_path / name, ["start of the config"])[0]
        assert 20 <= max(ticks) <= 31
    assert drawn[0] == drawn[1] and all(drawn[0])  # nothing in the panel without values


def logged(path, rows):
    lines = [
        {"stage": "rl", "hybrid": bool(n % 2), "reward": float(n // 2), "segments": [
            {"source": "POLICY", "text": f"text {n} {n * n}", "tokens": ["t"] * n}]} | row
        for n, row in enumerate(rows)
    ]  # fmt: skip
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def test_only_rollouts_that_the_policy_sampled_in_rl_are_compared(tmp_path):
    rows = [{}] * 40 + [{"off_policy": True}] * 10 + [{"stage": "sft"}] * 10
    kinds = diversity.rollouts(logged(tmp_path / "t.jsonl", rows))
    assert [len(each.points) for each in kinds.values()] == [20, 20]
    assert [each.rewards.max() for each in kinds.values()] == [19, 19]


def test_the_kept_part_of_the_kind_with_more_rollouts_is_spread_over_training(tmp_path):
    rows = [{"hybrid": n >= 40} for n in range(60)]  # on-policy ones have the rewards 0 to 19
    kinds = diversity.rollouts(logged(tmp_path / "t.jsonl", rows))
    kept = kinds["on-policy rollouts"].rewards
    assert (kept[0], kept[-1]) == (0, 19) and 9 < np.median(kept) < 11


def test_the_variance_of_a_kind_is_the_mean_square_distance_from_its_centre(tmp_path):
    run = RunFiles(tmp_path, {"seed": 0}, result=FINISHED)
    kinds = diversity.rollouts(logged(tmp_path / "trajectories.jsonl", [{}] * 60))
    found = diversity.collect({"x": [run]}, ("variance",))
    for kind, each in kinds.items():
        square = ((each.points - each.points.mean(0)) ** 2).sum(1).mean()
        assert found[kind]["variance"] == {0: pytest.approx(square)}


def test_a_point_far_from_all_others_is_no_cluster():
    groups = [np.full((12, 2), 0.0), np.full((12, 2), 50.0), np.full((1, 2), 99.0)]
    assert diversity.clusters(np.concatenate(groups), radius=1.0) == 2


def test_the_radius_reaches_the_tenth_neighbour_of_most_points():
    line = np.arange(1000.0)[:, None]  # five on each side
    assert diversity.radius_of(line) == 5.0


def subjects(text):
    """Which variants a statement says have more and less, by its first words."""
    if text.startswith("GRPO has more"):
        return "GRPO", "RAPO"
    if text.startswith(("hybrid rollouts form more", "they have more")):
        return diversity.KINDS[True], diversity.KINDS[False]
    if text.startswith("they have fewer"):
        return diversity.KINDS[False], diversity.KINDS[True]
    if text == "random traces cost accuracy":
        return "RAPO", "100% random traces"
    of = re.fullmatch(r"RAPO (?:is better than|leads) (.*?)", text)
    every = re.fullmatch(r"RAPO leads GRPO (?:with every agent|at every rate)", text)
    return (None, "GRPO") if every else ("RAPO", of[1] if of else "GRPO")


def test_a_statement_names_the_variant_that_has_more():
    for study in STUDIES.values():
        for claim in study.claims:
            more, less = subjects(claim.text)
            assert claim.less == less and claim.more == (more or claim.more), claim
            assert claim.more != "GRPO" or claim.text.startswith("GRPO has more")


def test_the_label_of_a_variant_says_what_its_settings_do():
    for name in ("w/o RR", "w/o RIS", "w/o RPO"):
        keys = [pair.removesuffix("=0") for pair in ABLATIONS[name].split(",")]
        assert any(name in KEYS[key].meaning for key in keys), name
    assert len(ABLATIONS["w/o RPO"].split(",")) == 2 and ABLATIONS["w/o RQ"] == "rl.quality=off"
    for label, setting in NOISY.items():
        assert label == f"{float(setting.removeprefix('retrieval.noise=')):.0%} random traces"
    better, worse = (
        dict(pair.split("=") for pair in STARTS[name].split(","))
        for name in ("better start", "worse start")
    )
    assert better["sft.weak_first"] > worse["sft.weak_first"]  # right decisions
    assert better["sft.weak_habit"] < worse["sft.weak_habit"]  # wrong ones
    alone = STUDIES["retrieval"].runs({"rl.steps": 9, "rollout.group_size": 6})
    settings = alone["hybrid rollouts alone"].split(",")
    assert set(settings) == {"method=rapo", *ABLATIONS["w/o RPO"].split(",")}


@pytest.mark.parametrize("steps", [100, 160])
def test_imitation_and_then_grpo_share_the_steps_of_a_run(steps):
    pairs = dict(pair.split("=") for pair in imitation_first({"rl.steps": steps}).split(","))
    assert int(pairs["rl.steps"]) + int(pairs["rl.imitation_steps"]) == steps

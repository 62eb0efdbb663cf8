"""Variants, paired differences and summaries."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest

from rapo_jax.report.compare import group_runs, paired_difference, summarise
from rapo_jax.report.costs import cpu_curve, cpu_seconds, token_curve
from rapo_jax.report.runs import load_run


def groups_of(*workdirs):
    return group_runs([load_run(workdir) for workdir in workdirs])


def test_runs_that_differ_in_seed_paths_and_logging_alone_are_one_variant(make_run):
    groups = groups_of(make_run("a", seed=0), make_run("b", seed=1))
    assert [(label, len(runs)) for label, runs in groups.items()] == [("rapo", 2)]


def test_a_label_names_the_method_and_its_unusual_settings(make_run):
    groups = groups_of(
        make_run("a", method="grpo", rl={"m": 0.0}),
        make_run("b"),
        make_run("c", rl={"noise": 1.0}),
        make_run("d", rl={"m": 0.0, "a": 0.0}),
    )
    assert list(groups) == ["grpo", "rapo", "rapo · rl.noise=1.0", "rapo · rl.a=0.0 · rl.m=0.0"]


def test_a_setting_without_a_usual_value_is_named_in_every_label(make_run):
    groups = groups_of(*(make_run(f"m{m}", rl={"m": m}) for m in (0.0, 0.1, 0.2)))
    assert list(groups) == ["rapo · rl.m=0.0", "rapo · rl.m=0.1", "rapo · rl.m=0.2"]


def test_a_value_of_half_of_several_variants_is_not_the_usual_one(make_run):
    two_of_four = [make_run(f"{m}-{a}", rl={"m": m, "a": a}) for m, a in
                   ((0.0, 0.1), (0.0, 0.2), (0.1, 0.1), (0.2, 0.1))]  # fmt: skip
    assert [label.rpartition(" · ")[2] for label in groups_of(*two_of_four)] == [
        "rl.m=0.0", "rl.m=0.0", "rl.m=0.1", "rl.m=0.2",
    ]  # fmt: skip


def test_where_data_and_buffers_lie_makes_no_variant(make_run):
    workdirs = [make_run("a", seed=0), make_run("b", seed=1)]
    for workdir in workdirs:
        config = json.loads((workdir / "config.json").read_text())
        config |= {key: {name: f"/{workdir.name}"} for key, name in
                   (("task", "data_dir"), ("buffer", "folder"))}  # fmt: skip
        config["config_file"] = f"/{workdir.name}.py"
        (workdir / "config.json").write_text(json.dumps(config))
    assert [(label, len(runs)) for label, runs in groups_of(*workdirs).items()] == [("rapo", 2)]


def test_a_key_that_an_older_runs_config_lacks_counts_with_its_default(make_run):
    older, newer = make_run("older"), make_run("newer", seed=1, rl={"retrieved_traces": "read"})
    changed = make_run("changed", rl={"retrieved_traces": "removed"})
    groups = group_runs([load_run(path) for path in (older, newer, changed)])
    assert {label: len(runs) for label, runs in groups.items()} == {
        "rapo": 2,
        "rapo · rl.retrieved_traces=removed": 1,
    }


def test_a_run_without_config_is_named_by_its_result_or_its_folder(make_run):
    workdir = make_run("lonely")
    (workdir / "config.json").unlink()
    assert list(groups_of(workdir)) == ["rapo"]
    (workdir / "result.json").unlink()
    assert list(groups_of(workdir)) == ["lonely"]


def test_the_interval_is_student_t_of_the_pairwise_differences():
    a, b = [0.7, 0.9, 0.8], [0.6, 0.6, 0.6]
    mean, low, high = paired_difference(a, b)
    # differences .1, .3, .2: mean .2, sample std .1; t(.95, 2 degrees of freedom) = 2.91999
    half = 2.91999 * 0.1 / math.sqrt(3)
    assert (mean, low, high) == pytest.approx((0.2, 0.2 - half, 0.2 + half), abs=1e-6)


def test_a_common_shift_of_both_values_of_a_pair_changes_nothing():
    a, b, shift = np.array([0.7, 0.9]), np.array([0.6, 0.7]), np.array([0.1, -0.3])
    assert paired_difference(a + shift, b + shift) == pytest.approx(paired_difference(a, b))


def test_one_pair_has_a_mean_and_no_interval_and_no_pair_has_nothing():
    mean, low, high = paired_difference([0.5], [0.25])
    assert mean == 0.25 and math.isnan(low) and math.isnan(high)
    assert all(map(math.isnan, paired_difference([], [])))


def test_equal_differences_give_an_interval_of_no_width():
    assert paired_difference([1.0, 2.0], [0.5, 1.5]) == (0.5, 0.5, 0.5)


def test_unequal_numbers_of_values_cannot_be_paired():
    with pytest.raises(ValueError, match="2 values cannot be paired with 1"):
        paired_difference([1.0, 2.0], [1.0])


def test_a_summary_pairs_by_seed_and_leaves_unpaired_seeds_out_of_the_difference(make_run):
    groups = groups_of(
        make_run("g0", method="grpo", seed=0, after=0.5),
        make_run("g1", method="grpo", seed=1, after=0.6),
        make_run("r1", seed=1, after=0.75),
        make_run("r0", seed=0, after=0.65),
        make_run("r2", seed=2, after=0.1),
    )
    grpo, rapo = summarise(groups, "grpo")
    assert grpo.difference is None and grpo.accuracy == pytest.approx(0.55)
    assert (rapo.seeds, rapo.pairs) == ((0, 1, 2), 2)
    assert rapo.difference == pytest.approx((0.15, 0.15, 0.15))
    assert rapo.accuracy == pytest.approx(0.5)
    assert rapo.accuracy_std == pytest.approx(np.std([0.75, 0.65, 0.1], ddof=1))


def test_equal_cpu_compares_all_runs_at_the_cpu_time_of_the_cheapest(make_run):
    groups = groups_of(
        make_run("g", method="grpo", steps=4, cpu=1.0), make_run("r", steps=4, cpu=2.0)
    )
    grpo, rapo = summarise(groups, "grpo")
    # Held-out accuracy is .5 + .01 step, measured before steps 1 to 4; GRPO's last measurement
    # had used 3 CPU-seconds, in which RAPO is half-way between its second and its third.
    assert cpu_curve(groups["grpo"][0])[0].tolist() == [0.0, 1.0, 2.0, 3.0]
    assert cpu_curve(groups["rapo"][0])[0].tolist() == [0.0, 2.0, 4.0, 6.0]
    assert (grpo.equal_cpu, rapo.equal_cpu) == pytest.approx((0.54, 0.525))
    assert (grpo.cpu_seconds, rapo.cpu_seconds) == (4.0, 8.0)


def rollouts(sampled, calls=0.5):
    return {"tokens": 5.0, "sampled_tokens": sampled, "tool_calls": calls}


def test_equal_tokens_compares_all_runs_at_the_tokens_of_the_one_that_sampled_fewest(make_run):
    groups = groups_of(
        *(
            make_run(f"g{seed}", method="grpo", seed=seed, rollouts=rollouts(100.0))
            for seed in (0, 1)
        ),
        make_run("r0", seed=0, rollouts=rollouts(300.0)),
        make_run("r1", seed=1, rollouts=rollouts(400.0)),
        make_run("s", method="sft", rollouts={}),
    )
    grpo, rapo, sft = summarise(groups, "grpo")
    # Held-out accuracy is .5 + .01 step, measured before steps 1 to 4. GRPO had sampled 300 tokens
    # before step 4, RAPO as many before step 2 (seed 0) or at 3/4 of step 1 (seed 1). Imitation
    # samples nothing and does not decide the number: its last measurement counts.
    assert (grpo.equal_tokens, sft.equal_tokens) == pytest.approx((0.54, 0.54))
    assert rapo.equal_tokens == pytest.approx((0.52 + 0.5175) / 2)
    assert rapo.equal_tokens_difference[0] == pytest.approx((0.52 + 0.5175) / 2 - 0.54)
    assert grpo.equal_tokens_difference is None


def test_costs_of_a_step_are_means_over_steps_and_runs(make_run):
    groups = groups_of(
        make_run("r0", seed=0, cpu=2.0, rollouts=rollouts(300.0, calls=0.5)),
        make_run("r1", seed=1, cpu=4.0, rollouts=rollouts(400.0, calls=1.5)),
        make_run("s", method="sft", rollouts={}),
    )
    rapo, sft = summarise(groups)
    # 2 questions with 3 rollouts each: 6 rollouts with 0.5 or 1.5 calls each
    assert rapo.step == (350.0, 6.0, 3.0, 1.0)
    assert sft.step == (0.0, 0.0, 1.0, 1.0)


def test_calls_of_a_step_are_those_of_the_rollouts_that_it_sampled(make_run):
    sampled = rollouts(100.0, calls=0.5) | {"sampled_rows": 4.0}  # and 2 past ones
    (summary,) = summarise(groups_of(make_run("r", rollouts=sampled)))
    assert summary.step.calls == 2.0


def test_a_run_without_the_count_of_some_step_has_no_tokens(make_run):
    workdir = make_run("r", rollouts=rollouts(100.0))
    lines = (workdir / "metrics.jsonl").read_text().splitlines()
    row = json.loads(lines[2])
    del row["rollout/sampled_tokens"]
    (workdir / "metrics.jsonl").write_text("\n".join([*lines[:2], json.dumps(row), *lines[3:]]))
    for run in (workdir, make_run("older", seed=1)):  # whose rollouts have other metrics alone
        (summary,) = summarise(groups_of(run))
        assert (summary.equal_tokens, summary.step.tokens) == (None, None)
        assert summary.step.cpu == 1.0


def test_an_imitation_before_rl_is_part_of_the_cost(make_run):
    workdir = make_run("g", method="sft_grpo", cpu=1.0, rollouts=rollouts(100.0))
    rows = [{"step": t, "stage": "imitation", "heldout/accuracy": 0.1 * t, "time/step": 1.0,
             "cpu/total": 5.0 * (t + 1)} for t in (0, 1)]  # fmt: skip
    with (workdir / "metrics.jsonl").open("a") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)
    run = load_run(workdir)
    for curve, cost in (
        (cpu_curve, [0, 5, 10, 11, 12, 13]),
        (token_curve, [0, 0, 0, 100, 200, 300]),
    ):
        spent, accuracy = curve(run)
        assert spent.tolist() == cost
        assert accuracy.tolist() == pytest.approx([0, 0.1, 0.51, 0.52, 0.53, 0.54])
    assert cpu_seconds(run) == 14.0


def test_the_interval_of_95_percent_is_wider(make_run):
    after = {"grpo": (0.5, 0.6, 0.7), "rapo": (0.6, 0.9, 0.9)}
    workdirs = [
        make_run(f"{method}{seed}", method=method, seed=seed, after=x)
        for method, values in after.items()
        for seed, x in enumerate(values)
    ]
    _, rapo = summarise(groups_of(*workdirs), "grpo")
    # differences .1, .3, .2: t(.95) = 2.91999 and t(.975) = 4.30265 with 2 degrees of freedom
    for interval, t in ((rapo.difference, 2.91999), (rapo.difference_95, 4.30265)):
        half = t * 0.1 / math.sqrt(3)
        assert interval == pytest.approx((0.2, 0.2 - half, 0.2 + half), abs=1e-6)


def test_runs_without_a_result_do_not_count_as_seeds(make_run):
    broken = make_run("b", seed=1)
    (broken / "result.json").unlink()
    (summary,) = summarise(groups_of(make_run("a", seed=0), broken))
    assert summary.seeds == (0,) and summary.accuracy == 0.7


def test_a_run_that_is_not_finished_does_not_decide_the_equal_cpu_time(make_run):
    begun = make_run("b", seed=1, steps=2)
    (begun / "result.json").unlink()
    summary, _ = summarise(groups_of(make_run("a", seed=0, steps=4), begun))
    assert summary.equal_cpu == pytest.approx(0.54)  # before step 4, .5 + .01 * 4


def test_a_run_that_is_not_finished_is_in_no_mean(make_run):
    begun = make_run("b", seed=1, steps=2, cpu=9.0, rl={"steps": 4})
    result = json.loads((begun / "result.json").read_text())
    (begun / "result.json").write_text(json.dumps(result | {"accuracy_after": None}))
    whole, both = (
        summarise(groups_of(*workdirs))[0]
        for workdirs in ([make_run("a", cpu=1.0)], [begun.with_name("a"), begun])
    )
    assert (both.cpu_seconds, both.step, both.accuracy_before) == (
        whole.cpu_seconds, whole.step, whole.accuracy_before,
    )  # fmt: skip


def test_equal_seeds_of_a_variant_count_once_with_their_mean_whatever_their_order(make_run):
    workdirs = [
        make_run("a", seed=0, after=0.2, cpu=1.0),
        make_run("b", seed=0, after=0.8, cpu=2.0),
        make_run("c", seed=1, after=0.6, cpu=3.0),
    ]
    (summary,) = summaries = summarise(groups_of(*workdirs))
    assert summaries == summarise(groups_of(*workdirs[::-1]))
    assert summary.seeds == (0, 1) and summary.accuracy == pytest.approx(0.55)
    assert summary.step.cpu == pytest.approx((1.5 + 3) / 2)
    assert summary.cpu_seconds == pytest.approx(4 * (1.5 + 3) / 2)


def test_nothing_to_summarise_is_no_error():
    assert summarise({}) == []

"""The measures, verdicts, pages and pictures of the paper's studies."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest

from rapo_jax.config.read import read_settings
from rapo_jax.config.sources import resolve
from rapo_jax.report import diversity
from rapo_jax.report.runs import load_run
from rapo_jax.report.studies import (
    MEASURES,
    Claim,
    Study,
    difference,
    measured,
    verdict,
    with_equal_costs,
)
from rapo_jax.report.study_pages import (
    Numbers,
    joined,
    numbers_of,
    read_numbers,
    write_page,
)
from rapo_jax.report.study_pictures import draw_curves, draw_variants
from rapo_jax.report.study_table import STUDIES


def accuracies(**variants):
    """Values of one measure: the n-th number of a variant is that of seed n."""
    return {label: {"accuracy": dict(enumerate(x))} for label, x in variants.items()}


def test_a_difference_is_paired_by_seed_with_a_t_interval_and_the_difference_that_is_detectable():
    values = accuracies(a=[0.6, 0.7, 0.9], b=[0.5, 0.5, 0.6])
    found = difference(values, "accuracy", "a", "b")
    pairs = np.array([0.1, 0.2, 0.3])
    error = pairs.std(ddof=1) / math.sqrt(3)
    # quantiles of Student's t with 2 degrees of freedom: a sqrt(2 / (1 - a^2)), a = 2p - 1
    quantile = {0.975: 0.95 * math.sqrt(2 / (1 - 0.95**2))}
    half = quantile[0.975] * error
    assert found.interval == pytest.approx((0.2, 0.2 - half, 0.2 + half))
    # with 3 pairs whose differences have that true mean, 80 % of t statistics are beyond the bound
    normal = np.random.default_rng(0).normal(size=(400_000, 3))
    drawn = found.detectable + normal * pairs.std(ddof=1)
    t = drawn.mean(1) / (drawn.std(1, ddof=1) / math.sqrt(3))
    assert (np.abs(t) > quantile[0.975]).mean() == pytest.approx(0.8, abs=0.003)
    assert found.pairs == 3


def test_only_seeds_that_both_have_are_paired():
    values = accuracies(a=[0.6, 0.7], b=[0.5])
    found = difference(values, "accuracy", "a", "b")
    assert found.pairs == 1 and found.interval[0] == pytest.approx(0.1)
    assert math.isnan(found.interval[1]) and math.isnan(found.detectable)


@pytest.mark.parametrize(
    ("a", "b", "word"),
    [
        ([0.6, 0.61, 0.62], [0.5, 0.5, 0.52], "holds"),
        ([0.5, 0.5, 0.52], [0.6, 0.61, 0.62], "the opposite holds"),
        ([0.5, 0.7, 0.6], [0.6, 0.6, 0.6], "undecided"),
        ([0.5], [0.4], "undecided"),
        ([], [0.4], "not measured"),
    ],
)
def test_a_statement_holds_where_the_interval_lies_above_0(a, b, word):
    assert verdict(difference(accuracies(a=a, b=b), "accuracy", "a", "b")) == word


def test_measures_are_those_of_the_runs_by_seed(write_run, tmp_path):
    runs = [load_run(write_run(tmp_path / f"{s}", seed=s, after=0.5 + s / 10)) for s in (1, 2)]
    values = measured({"x": runs}, ("accuracy", "reward", "rollout_s", "cpu_s", "tokens"))["x"]
    assert values["accuracy"] == pytest.approx({1: 0.6, 2: 0.7})
    assert values["reward"] == {1: 4, 2: 4}  # the last quarter of rewards 1, 2, 3, 4
    assert values["rollout_s"] == {1: 0.5, 2: 0.5} and values["cpu_s"] == {1: 1, 2: 1}
    assert values["tokens"] == {}  # the made runs have no such metric


def test_a_run_without_a_final_accuracy_has_no_measures(write_run, tmp_path):
    failed = write_run(tmp_path / "failed", steps=1)
    (failed / "result.json").unlink()
    whole = write_run(tmp_path / "whole", seed=1)
    values = measured({"x": [load_run(failed), load_run(whole)]}, ("reward", "rollout_s", "cpu_s"))
    assert values == {"x": {"reward": {1: 4}, "rollout_s": {1: 0.5}, "cpu_s": {1: 1}}}


def test_accuracies_are_compared_at_what_the_baselines_run_of_the_same_seed_had_spent(
    write_run, tmp_path
):
    """The made runs measure 0.5 + t / 100 before step t; each step spends `cpu` seconds."""
    base = [load_run(write_run(tmp_path / "base", seed=3, steps=4, cpu=1.0))]
    costly = [load_run(write_run(tmp_path / "costly", seed=3, steps=4, cpu=2.0))]
    cheap = [load_run(write_run(tmp_path / "cheap", seed=3, steps=4, cpu=0.1))]
    other = [load_run(write_run(tmp_path / "other", seed=4, steps=4))]
    runs = {"base": base, "costly": costly, "cheap": cheap, "other": other}
    values = with_equal_costs(runs, ("accuracy",), baseline="base")
    at_cpu = {label: of["equal_cpu"] for label, of in values.items()}
    # the base's last measurement, 0.54, is after 3 CPU-seconds; a run of 2 s a step then is halfway
    # between those after 2 s (0.52) and after 4 s (0.53)
    assert at_cpu["base"] == {3: pytest.approx(0.54)}
    assert at_cpu["costly"] == {3: pytest.approx(0.525)}
    assert at_cpu["cheap"] == {3: pytest.approx(0.54)} and at_cpu["other"] == {}


def page_of(write_run, tmp_path, draw=draw_variants):
    study = Study(
        "Two variants", "fig. 0", lambda config: {}, "b", ("accuracy", "cpu_s"), draw,
        (Claim("a is better", "accuracy", "a", "b"),),
    )  # fmt: skip
    runs = {
        label: [
            load_run(write_run(tmp_path / f"{label}{seed}", seed=seed, after=after + seed / 100))
            for seed in (0, 1)
        ]
        for label, after in (("a", 0.7), ("b", 0.5))
    }
    values = measured(runs, study.measures)
    draw(runs, values, study.measures, tmp_path / "two.svg")
    every = [run for each in runs.values() for run in each]
    numbers = numbers_of(["--config.rl.m=0.2"], {"a": "method=rapo"}, every, values)
    page = write_page("two", study, numbers, tmp_path)
    return page, tmp_path


def test_a_page_has_the_command_the_table_the_picture_and_the_verdicts(write_run, tmp_path):
    page, folder = page_of(write_run, tmp_path)
    assert (folder / "two.md").read_text() == page
    assert (
        "\npython launch/studies.py two --workdir=WORKDIR --config.rl.m=0.2 --seeds=0,1\n" in page
    )
    assert "![Two variants](two.svg)" in page
    assert "| a | 2 | 70.5 ± 0.7 | 1.00 ± 0.00 | +20.0 [+20.0, +20.0] | 0.0 |" in page
    assert "| b | 2 | 50.5 ± 0.7 | 1.00 ± 0.00 |  |  |" in page
    assert "| a is better | held-out accuracy, % | a − b | +20.0 [+20.0, +20.0] | holds |" in page
    numbers = read_numbers(folder / "two.json", ["--config.rl.m=0.2"], {})
    assert numbers.values["a"]["accuracy"] == pytest.approx({0: 0.7, 1: 0.71})


def test_the_commit_of_a_run_with_local_changes_has_a_plus(make_run):
    found = []
    for name, commit in (("a", "0123456789abcdef+"), ("b", "0123456789abcdef"), ("c", "")):
        workdir = make_run(name)
        config = json.loads((workdir / "config.json").read_text()) | {"commit": commit}
        (workdir / "config.json").write_text(json.dumps(config))
        found.append(load_run(workdir))
    assert numbers_of((), {}, found, {}).commits == {0: ["0123456", "0123456+", "unknown"]}


def test_a_seed_that_is_measured_again_replaces_the_earlier_one_as_a_whole():
    old = Numbers((), {}, {0: ["b"], 1: ["b"]}, accuracies(x=[0.1, 0.2], y=[0.3, 0.4]))
    values = {"x": {"accuracy": {1: 0.5, 2: 0.6}}, "y": {"accuracy": {}}}
    new = Numbers((), {}, {1: ["a"], 2: ["a"]}, values)
    found = joined(new, old)
    # y has no pair for the new x of seed 1
    wanted = {"x": {0: 0.1, 1: 0.5, 2: 0.6}, "y": {0: 0.3}}
    assert found.values == {label: {"accuracy": of} for label, of in wanted.items()}
    assert found.commits == {0: ["b"], 1: ["a"], 2: ["a"]} and found.seeds == [0, 1, 2]
    assert joined(new, None) == new


NO_PAGES = [
    ("", "not the numbers of a study"),
    ("[]", "not the numbers of a study"),
    ("{}", "not the numbers of a study"),
    ({"commits": {"x": []}}, "not the numbers of a study"),
    ({"options": ["--config.rl.m=0"]}, "is of --config.rl.m=0, this study of no flags"),
    ({"variants": {"a": "method=grpo"}}, "a is method=grpo, in this study method=rapo"),
]


@pytest.mark.parametrize(("content", "message"), NO_PAGES)
def test_a_page_that_is_not_of_this_study_is_named(tmp_path, content, message):
    if isinstance(content, dict):
        content = json.dumps({"options": [], "variants": {}, "commits": {}, "values": {}} | content)
    (tmp_path / "two.json").write_text(content)
    with pytest.raises(ValueError, match=rf"two\.json.*{message}.*; choose another --output"):
        read_numbers(tmp_path / "two.json", [], {"a": "method=rapo"})


def test_curves_are_of_finished_runs_and_say_of_how_many(write_run, tmp_path):
    runs = [load_run(write_run(tmp_path / f"{seed}", seed=seed)) for seed in (0, 1)]
    (tmp_path / "1" / "result.json").unlink()
    variants = {"a": [runs[0], load_run(tmp_path / "1")]}
    draw_curves(variants, {}, (), tmp_path / "curves.svg")
    before = (tmp_path / "curves.svg").read_bytes()
    assert b"a, 1 seeds" in before
    draw_curves({"a": variants["a"][1:]}, {}, (), tmp_path / "curves.svg")
    assert (tmp_path / "curves.svg").read_bytes() == before


@pytest.mark.parametrize("draw", [draw_variants, draw_curves])
def test_a_picture_is_the_same_for_equal_runs(write_run, tmp_path, draw):
    for name in ("x", "y"):
        (tmp_path / name).mkdir()
        page_of(write_run, tmp_path / name, draw)
    first, second = ((tmp_path / name / "two.svg").read_bytes() for name in ("x", "y"))
    assert first == second and b"<text" in first


def test_every_study_compares_variants_and_measures_that_exist():
    config = {"rl.steps": 160, "rollout.group_size": 16, "rollout.n_hybrid": 8}
    for study in STUDIES.values():
        labels = set(study.runs(config)) | set(diversity.KINDS.values())
        assert study.baseline in labels and set(study.measures) <= set(MEASURES)
        for claim in study.claims:
            assert {claim.more, claim.less} <= labels and claim.measure in MEASURES


@pytest.mark.parametrize("name", STUDIES)
def test_every_variant_of_a_study_is_a_valid_config_of_the_tiny_task(name):
    def settings_of(flags):
        resolved = resolve("tiny", flags=flags)
        return resolved.config, read_settings(resolved.config)

    _, tiny = settings_of([])
    config = {
        "rl.steps": tiny.rl.steps,
        "rollout.group_size": tiny.rollout.group_size,
        "rollout.n_hybrid": tiny.rollout.n_hybrid,
    }
    configs = [
        settings_of([tuple(pair.split("=", 1)) for pair in text.split(",")])[0]
        for text in STUDIES[name].runs(config).values()
    ]
    assert len({json.dumps(each, default=str, sort_keys=True) for each in configs}) == len(configs)


def write_rollouts(path, texts_of_kind):
    with path.open("w") as file:
        for hybrid, texts in texts_of_kind.items():
            for text in texts:
                parts = [
                    {"source": "POLICY", "text": text, "tokens": text.split()},
                    {"source": "RETRIEVED", "text": "a trace", "tokens": ["a", "trace"]},
                ]
                row = {"stage": "rl", "hybrid": hybrid, "reward": float(hybrid), "segments": parts}
                file.write(json.dumps(row) + "\n")


def test_rollouts_of_more_kinds_of_text_form_more_clusters(write_run, tmp_path):
    workdir = write_run(tmp_path / "run")
    subjects = ("red apple", "blue river", "green hill", "old house")
    on_policy = [f"{subjects[i % 2]} number {i % 3}" for i in range(240)]
    hybrid = [f"{subjects[i % 4]} number {i % 3}" for i in range(120)]
    write_rollouts(workdir / "trajectories.jsonl", {False: on_policy, True: hybrid})
    values = diversity.collect({"RAPO": [load_run(workdir)]}, STUDIES["diversity"].measures)
    on_policy, hybrid = (values[kind] for kind in diversity.KINDS.values())
    assert 0 < on_policy["clusters"][0] < hybrid["clusters"][0]
    assert on_policy["variance"][0] < hybrid["variance"][0]
    assert on_policy["rollout_reward"][0] == 0 and hybrid["rollout_reward"][0] == 1
    assert on_policy["rollout_tokens"][0] == 4  # without the trace's two
    diversity.draw({"RAPO": [load_run(workdir)]}, values, (), tmp_path / "plane.svg")
    assert b"hybrid rollouts (120)" in (tmp_path / "plane.svg").read_bytes()


def test_equal_answers_of_both_kinds_do_not_hide_the_clusters_of_each(write_run, tmp_path):
    """Eight equal texts of each kind: ten neighbours are at distance 0 only among both kinds."""
    workdir = write_run(tmp_path / "run")
    subjects = ("red apple", "blue river", "green hill", "old house")
    texts = [f"{subjects[i % 4]} number {i}" for i in range(20) for _ in range(8)]
    write_rollouts(workdir / "trajectories.jsonl", {False: texts, True: texts})
    values = diversity.collect({"RAPO": [load_run(workdir)]}, ("clusters",))
    assert min(of["clusters"][0] for of in values.values()) > 1


def test_both_kinds_are_compared_on_equally_many_rollouts(tmp_path):
    texts = [f"text {i} {i * i}" for i in range(60)]
    write_rollouts(tmp_path / "t.jsonl", {False: texts, True: texts[:20]})
    kinds = diversity.rollouts(tmp_path / "t.jsonl")
    assert [len(each.points) for each in kinds.values()] == [20, 20]


def test_a_run_with_too_few_logged_rollouts_has_no_clusters(tmp_path):
    write_rollouts(tmp_path / "few.jsonl", {False: ["a", "b"], True: ["c"]})
    assert not diversity.rollouts(tmp_path / "few.jsonl")


def test_runs_without_logged_trajectories_or_an_end_have_no_clusters(write_run, tmp_path):
    unlogged, failed = (write_run(tmp_path / name) for name in ("unlogged", "failed"))
    (unlogged / "trajectories.jsonl").unlink()
    texts = [f"text {i} {i * i}" for i in range(20)]
    write_rollouts(failed / "trajectories.jsonl", {False: texts, True: texts})
    (failed / "result.json").unlink()
    runs = [load_run(folder) for folder in (tmp_path / "none", unlogged, failed)]
    values = diversity.collect({"RAPO": runs}, ("clusters",))
    assert values == {kind: {"clusters": {}} for kind in diversity.KINDS.values()}
    diversity.draw({"RAPO": runs}, values, (), tmp_path / "plane.svg")

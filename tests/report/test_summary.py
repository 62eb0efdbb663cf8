"""The comparison of variants as a table and as JSON."""

from __future__ import annotations

import json

import pytest

from rapo_jax.report.summary import interval, points, write_summary


def test_the_table_and_the_json_have_the_same_numbers(make_run, tmp_path):
    workdirs = [
        make_run("g0", method="grpo", seed=0, after=0.5),
        make_run("g1", method="grpo", seed=1, after=0.52),
        make_run("r0", seed=0, after=0.6),
        make_run("r1", seed=1, after=0.62),
    ]
    table = write_summary(workdirs, tmp_path, baseline="grpo")
    assert (tmp_path / "summary.md").read_text() == table
    document = json.loads((tmp_path / "summary.json").read_text())
    grpo, rapo = document["variants"]
    assert document["baseline"] == grpo["label"] == "grpo"
    assert rapo["difference"] == pytest.approx([0.1, 0.1, 0.1])
    assert rapo["hidden"] == pytest.approx((0.4 + 0.2 + 0.42 + 0.22) / 4)
    lines = table.splitlines()
    assert "61.0 % ± 1.4" in lines[3] and "+10.0 [+10.0, +10.0]" in lines[3]
    assert len({line.count("|") for line in lines}) == 1


def test_a_line_has_the_costs_of_a_step_and_a_dash_where_an_older_run_counted_no_tokens(
    make_run, tmp_path
):
    counted = {"tokens": 5.0, "sampled_tokens": 1234.0, "tool_calls": 0.5}
    workdirs = [
        *(make_run(f"g{seed}", method="grpo", seed=seed, rollouts=counted) for seed in (0, 1)),
        *(make_run(f"r{seed}", seed=seed, cpu=10.0) for seed in (0, 1)),
    ]
    head, _, grpo, rapo = [
        [cell.strip() for cell in line.split("|")[1:-1]]
        for line in write_summary(workdirs, tmp_path, baseline="grpo").splitlines()
    ]
    assert dict(zip(head, grpo, strict=True)) | {
        "At equal CPU": "54.0 %",
        "At equal sampled tokens": "54.0 %",
        "Tokens a step": "1234",
        "Calls a step": "3",  # 6 rollouts of half a call
        "CPU-s a step": "1",
        "Seconds a step": "1",
        "CPU-seconds": "4",
    } == dict(zip(head, grpo, strict=True))
    # GRPO's last measurement had used 3 CPU-seconds, 3/10 of RAPO's first step
    assert dict(zip(head, rapo, strict=True)) | {
        "Difference to grpo [90 %]": "+0.0 [+0.0, +0.0]",
        "[95 %]": "[+0.0, +0.0]",
        "At equal CPU": "51.3 %, −2.7 [−2.7, −2.7]",
        "At equal sampled tokens": "–",
        "Tokens a step": "–",
        "Calls a step": "–",
        "CPU-s a step": "10",
    } == dict(zip(head, rapo, strict=True))


def test_one_seed_has_no_interval_and_a_missing_baseline_no_difference(make_run, tmp_path):
    workdirs = [make_run("g", method="grpo", after=0.5), make_run("r", after=0.6)]
    write_summary(workdirs, tmp_path, baseline="grpo")
    _, rapo = json.loads((tmp_path / "summary.json").read_text())["variants"]
    assert rapo["difference"] == [pytest.approx(0.1), None, None]
    write_summary(workdirs, tmp_path, baseline="ppo")
    assert json.loads((tmp_path / "summary.json").read_text())["variants"][1]["difference"] is None


def test_a_baseline_that_no_variant_has_and_repeated_seeds_are_named_under_the_table(
    make_run, tmp_path
):
    workdirs = [make_run("g", method="grpo"), make_run("r0"), make_run("r1"), make_run("r2")]
    text = write_summary(workdirs, tmp_path, baseline="gpro")
    assert text == (tmp_path / "summary.md").read_text()
    assert text.endswith(
        "\n\nNo variant is called 'gpro', so there are no differences; there are: 'grpo', 'rapo'.\n"
        "\nrapo: 3 runs of seed 0 count as one, with their mean.\n"
    )


def test_numbers_read_as_people_write_them():
    assert points(-0.0123) == "−1.2"
    assert points(float("nan")) == "–"
    assert interval((0.05, float("nan"), float("nan"))) == "+5.0"
    assert interval((0.05, 0.01, 0.09)) == "+5.0 [+1.0, +9.0]"

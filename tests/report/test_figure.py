"""The picture of held-out accuracy against CPU time."""

from __future__ import annotations

import xml.etree.ElementTree as tree

from rapo_jax.report.figure import write_figure


def test_the_picture_has_a_line_for_each_variant_in_both_panels(make_run, tmp_path):
    workdirs = [
        make_run(f"{method}{seed}", method=method, seed=seed)
        for method in ("grpo", "rapo")
        for seed in (0, 1)
    ]
    assert write_figure(workdirs, tmp_path / "a.svg")
    words = [each.text for each in tree.parse(tmp_path / "a.svg").iter() if each.text]
    for title in ("held-out accuracy, all questions", "held-out accuracy, hidden words"):
        assert title in words
    assert words.count("grpo") == words.count("rapo") == 1
    assert words.count("CPU-seconds of training") == 2
    before = (tmp_path / "a.svg").read_bytes()
    assert write_figure(workdirs, tmp_path / "a.svg")
    assert (tmp_path / "a.svg").read_bytes() == before


def test_each_panel_has_the_accuracies_of_its_title(make_run, tmp_path):
    """The made runs are right on 51 to 54 % of all questions and on 30 % of hidden words."""
    assert write_figure([make_run("a")], tmp_path / "a.svg")
    words = [each.text for each in tree.parse(tmp_path / "a.svg").iter() if each.text]
    middle = words.index("held-out accuracy, all questions")  # after the ticks of its panel
    for part, low, high in ((words[:middle], 50, 55), (words[middle:], 27, 33)):
        ticks = [float(word.removesuffix(" %")) for word in part if word.endswith(" %")]
        assert ticks and low <= min(ticks) and max(ticks) <= high


def test_a_variant_without_hidden_words_is_in_the_legend_too(make_run, tmp_path):
    workdirs = [make_run(method, method=method) for method in ("grpo", "rapo")]
    text = (workdirs[0] / "metrics.jsonl").read_text().replace("heldout/hidden", "other/hidden")
    (workdirs[0] / "metrics.jsonl").write_text(text)
    assert write_figure(workdirs, tmp_path / "a.svg")
    words = [each.text for each in tree.parse(tmp_path / "a.svg").iter() if each.text]
    assert words.count("grpo") == words.count("rapo") == 1


def test_runs_without_a_curve_make_no_picture(make_run, tmp_path):
    workdir = make_run("a")
    (workdir / "metrics.jsonl").write_text("")
    assert not write_figure([workdir], tmp_path / "a.svg")
    assert not (tmp_path / "a.svg").exists()


def test_without_hidden_words_there_is_one_panel_with_a_legend(make_run, tmp_path):
    workdirs = [make_run(method, method=method) for method in ("grpo", "rapo")]
    for workdir in workdirs:
        text = (workdir / "metrics.jsonl").read_text().replace("heldout/hidden", "other/hidden")
        (workdir / "metrics.jsonl").write_text(text)
    assert write_figure(workdirs, tmp_path / "a.svg")
    words = [each.text for each in tree.parse(tmp_path / "a.svg").iter() if each.text]
    assert words.count("grpo") == words.count("rapo") == 1
    assert words.count("CPU-seconds of training") == 1

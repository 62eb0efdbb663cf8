"""launch/studies.py: a study is a sweep whose runs all studies share, and a page."""

from __future__ import annotations

import json
import re
import shlex

import pytest

from tests.launch.sweeps import ROOT, TINY, load

studies = load("studies")


def flags_of(name, folder, *more):
    return [name, TINY, f"--workdir={folder}", *more]


def test_a_study_runs_its_variants_and_writes_its_page(tmp_path, program, capsys):
    folder = tmp_path / "w"
    assert studies.main(flags_of("dynamics", folder, "--seeds=0,1", "--jobs=2"), program) == 0
    order = (folder / "runs" / "order").read_text().split()
    assert sorted(order[1:]) == ["grpo_seed=0", "grpo_seed=1", "rapo_seed=0", "rapo_seed=1"]
    page = (folder / "pages" / "dynamics.md").read_text()
    assert page in capsys.readouterr().out
    assert "| RAPO ends at a higher reward |" in page
    assert "--workdir=WORKDIR --config=configs/tiny.py --seeds=0,1\n" in page


def test_studies_share_their_runs(tmp_path, program):
    folder = tmp_path / "w"
    assert studies.main(flags_of("dynamics", folder, "--seeds=0"), program) == 0
    assert studies.main(flags_of("noise", folder, "--seeds=0"), program) == 0
    order = (folder / "runs" / "order").read_text().split()
    assert order.count("rapo_seed=0") == order.count("grpo_seed=0") == order.count("shared") == 1
    values = json.loads((folder / "pages" / "noise.json").read_text())["values"]
    assert values["RAPO"]["accuracy"] == {"0": 0.6} and values["GRPO"]["accuracy"] == {"0": 0.5}
    assert len(values) == 7


def test_pages_can_be_written_elsewhere(tmp_path, program):
    more = ("--seeds=0", f"--output={tmp_path / 'docs'}")
    assert studies.main(flags_of("dynamics", tmp_path / "w", *more), program) == 0
    assert (tmp_path / "docs" / "dynamics.md").exists()


def test_seeds_of_another_workdir_join_the_page(tmp_path, program):
    output = f"--output={tmp_path / 'docs'}"
    for seed in ("0", "1"):
        flags = flags_of("noise", tmp_path / seed, f"--seeds={seed}", output)
        assert studies.main(flags, program) == 0
    page = (tmp_path / "docs" / "noise.md").read_text()
    assert "--seeds=0,1\n" in page and "| RAPO | 2 | 60.5 ± 0.7 | +10.0 [+10.0, +10.0] |" in page


def test_a_page_of_other_options_is_not_mixed_with_this_studys_runs(tmp_path, program, capsys):
    output = f"--output={tmp_path / 'docs'}"
    assert studies.main(flags_of("noise", tmp_path / "x", "--seeds=0", output), program) == 0
    before = (tmp_path / "docs" / "noise.json").read_bytes()
    with pytest.raises(SystemExit, match="^2$"):
        more = ("--seeds=1", output, "--config.rl.steps=3")
        studies.main(flags_of("noise", tmp_path / "y", *more), program)
    assert "choose another --output" in capsys.readouterr().err
    assert (tmp_path / "docs" / "noise.json").read_bytes() == before
    assert not (tmp_path / "y").exists()


def test_pages_only_writes_the_page_of_what_has_run(tmp_path, program):
    folder = tmp_path / "w"
    assert studies.main(flags_of("dynamics", folder, "--seeds=0"), program) == 0
    order = (folder / "runs" / "order").read_text()
    assert studies.main(flags_of("noise", folder, "--seeds=0", "--pages-only"), program) == 0
    assert (folder / "runs" / "order").read_text() == order
    with pytest.raises(SystemExit, match="^2$"):
        more = ("--seeds=0", "--pages-only", "--config.rl.steps=3", f"--output={tmp_path / 'x'}")
        studies.main(flags_of("noise", folder, *more), program)
    values = json.loads((folder / "pages" / "noise.json").read_text())["values"]
    assert values["RAPO"]["accuracy"] == {"0": 0.6}
    assert values["20% random traces"]["accuracy"] == {}


def test_a_dry_run_checks_and_prints_and_writes_nothing(tmp_path, program, capsys):
    folder = tmp_path / "w"
    assert studies.main(flags_of("all", folder, "--seeds=0", "--dry-run"), program) == 0
    lines = capsys.readouterr().out.splitlines()
    assert sum("--config.rl.quality=off" in line for line in lines) == 1
    assert not folder.exists()


def test_an_unknown_study_is_refused_with_the_known_names(tmp_path, program, capsys):
    with pytest.raises(SystemExit) as stopped:
        studies.main(flags_of("ablations", tmp_path / "w"), program)
    assert stopped.value.code == 2
    assert "ablation" in capsys.readouterr().err


def test_a_failed_run_is_left_out_of_the_page_and_reported(tmp_path, program, capsys):
    assert studies.main(flags_of("dynamics", tmp_path / "w", "--seeds=7"), program) == 1
    assert "FAILED" in capsys.readouterr().out


def test_the_commands_of_the_pages_are_valid(capfd, monkeypatch):
    monkeypatch.chdir(ROOT)
    found = []
    for page in [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]:
        text = page.read_text(encoding="utf-8").replace("\\\n", " ")
        found += re.findall(r"python launch/studies\.py ([^`\n]*(?:\n *--[^`\n]*)*)", text)
    for command in found:
        flags = shlex.split(command.replace("NAME", "dynamics"), comments=True)
        assert studies.main([*flags, "--dry-run"]) == 0, command
    assert len(found) > 4


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--config.rl.stepz=3"], "error: --config.rl.stepz: the config has no such key"),
        (["--config=nope.py"], "error: --config=nope.py"),
        (["--dryrun"], "error: unknown flag '--dryrun'"),
        (["--config.rl.steps", "3"], "error: unknown flag '--config.rl.steps'"),
        (["--config.seed=3"], "error: --config.seed=3: the study methods sets seed itself"),
        (["--config.rl.m=0.3"], "error: --config.rl.m=0.3: the study retrieval sets rl.m itself"),
        (["--config.buffer.keep=0"], "error: buffer.keep=0"),
        (
            ["--config.buffer.agent=none", "--config.buffer.files=('pyproject.toml',)"],
            "error: buffer.agent='none': the study teachers changes buffer.expert_error, which",
        ),
        (["--jobs=0"], "error: --jobs=0"),
        (["--seeds=1,1"], "error: two runs would be called"),
    ],
)
def test_a_wrong_flag_of_any_study_ends_with_one_line_and_2_before_anything_starts(
    tmp_path, program, capfd, more, message
):
    with pytest.raises(SystemExit, match="^2$"):
        studies.main(flags_of("all", tmp_path / "w", "--seeds=0", *more), program)
    out, err = capfd.readouterr()
    (line,) = err.splitlines()
    assert line.startswith(message) and out == ""
    assert not (tmp_path / "w").exists()


def test_the_study_of_diversity_writes_its_page_without_logged_trajectories(tmp_path, program):
    folder = tmp_path / "w"
    assert studies.main(flags_of("diversity", folder, "--seeds=0"), program) == 0
    assert "not measured" in (folder / "pages" / "diversity.md").read_text()

"""`python -m rapo_jax.report`: folders that are no workdirs end it with an error."""

from __future__ import annotations

import pytest

from rapo_jax.report.__main__ import main


@pytest.mark.parametrize(
    ("folder", "message"), [("nowhere", "there is no such folder"), ("empty", "config.json is mis")]
)
def test_a_folder_that_is_no_workdir_is_refused(folder, message, tmp_path, monkeypatch, capsys):
    (tmp_path / "empty").mkdir()
    output = tmp_path / "report.html"
    monkeypatch.setattr("sys.argv", ["report", str(tmp_path / folder), f"--output={output}"])
    with pytest.raises(SystemExit, match="^2$"):
        main()
    error = capsys.readouterr().err
    assert f"{tmp_path / folder}: no workdir of a run (" in error and message in error
    assert not output.exists()


def test_an_output_in_a_folder_that_is_not_there_is_refused(tmp_path, monkeypatch, capsys):
    (tmp_path / "result.json").write_text('{"method": "grpo"}')
    flags = [str(tmp_path), f"--output={tmp_path / 'no' / 'report.html'}"]
    monkeypatch.setattr("sys.argv", ["report", *flags])
    with pytest.raises(SystemExit, match="^2$"):
        main()
    assert "there is no folder " in capsys.readouterr().err


def test_an_svg_is_the_picture_of_held_out_accuracies(write_run, tmp_path, monkeypatch, capsys):
    workdir, output = write_run(tmp_path / "run"), tmp_path / "heldout.svg"
    monkeypatch.setattr("sys.argv", ["report", str(workdir), f"--output={output}"])
    main()
    assert b"CPU-seconds of training" in output.read_bytes()
    (workdir / "metrics.jsonl").write_text("")
    with pytest.raises(SystemExit, match="^2$"):
        main()
    assert "no run has held-out accuracies" in capsys.readouterr().err


def test_another_form_of_output_is_refused(write_run, tmp_path, monkeypatch, capsys):
    workdir, output = write_run(tmp_path / "run"), tmp_path / "compared.pdf"
    monkeypatch.setattr("sys.argv", ["report", str(workdir), f"--output={output}"])
    with pytest.raises(SystemExit, match="^2$"):
        main()
    assert "a report is .html, a picture .svg" in capsys.readouterr().err and not output.exists()


@pytest.mark.parametrize("name", ["report.html", "heldout.svg"])
def test_an_output_that_cannot_be_written_is_one_line(
    name, write_run, tmp_path, monkeypatch, capsys
):
    (tmp_path / name).mkdir()  # where the file should be
    flags = [str(write_run(tmp_path / "run")), f"--output={tmp_path / name}"]
    monkeypatch.setattr("sys.argv", ["report", *flags])
    with pytest.raises(SystemExit, match="^1$"):
        main()
    (line,) = capsys.readouterr().err.splitlines()
    assert f"error: --output={tmp_path / name}: " in line and "directory" in line

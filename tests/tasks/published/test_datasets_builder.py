"""The published sets as tensorflow-datasets builders: array_record files, no TensorFlow."""

from __future__ import annotations

import sys

import pytest
import tensorflow_datasets as tfds

from rapo_jax.tasks.published import SETS
from rapo_jax.tasks.published.__main__ import main
from rapo_jax.tasks.published.builder import PublishedQuestions
from tests.tasks.published.fixtures import FIXTURES

ONE_EACH = {fixture.set: fixture for fixture in FIXTURES}


def prepared(name, folder):
    (folder / "manual").mkdir(exist_ok=True)
    builder = PublishedQuestions(config=name, data_dir=folder / "data", file_format="array_record")
    download = tfds.download.DownloadConfig(manual_dir=folder / "manual")
    builder.download_and_prepare(download_config=download)
    return builder


@pytest.mark.parametrize("name", ONE_EACH)
def test_a_builder_keeps_every_row_of_every_split_with_files(tmp_path, name):
    fixture = ONE_EACH[name]
    fixture.write(tmp_path / "manual" / name / fixture.file, fixture.records)
    builder = prepared(name, tmp_path)
    assert fixture.split in builder.info.splits
    source = builder.as_data_source(split=fixture.split)
    found = [
        (
            row["question"].decode(),
            tuple(answer.decode() for answer in row["answers"]),
            row["metric"].decode(),
            row["difficulty"].decode(),
        )
        for row in source
    ]
    assert found == list(fixture.rows)
    assert "tensorflow" not in sys.modules


def test_without_any_file_the_builder_says_where_to_get_them(tmp_path):
    (tmp_path / "manual" / "math500").mkdir(parents=True)
    with pytest.raises(ValueError, match="gsm8k: get it from github.com/openai/grade-school-math"):
        prepared("gsm8k", tmp_path)
    for published in SETS.values():
        assert published.offered in PublishedQuestions.MANUAL_DOWNLOAD_INSTRUCTIONS


def test_the_build_command_needs_no_tensorflow_and_names_the_missing_files(tmp_path, capsys):
    fixture = ONE_EACH["gsm8k"]
    fixture.write(tmp_path / "manual" / "gsm8k" / fixture.file, fixture.records)
    where = [f"--manual_dir={tmp_path}/manual", f"--data_dir={tmp_path}/data"]
    main(["--config=gsm8k", *where])
    assert list((tmp_path / "data").rglob("*test.array_record*"))
    assert "2 records of 2 lines" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        main(["--config=math500", *where])
    assert "error: math500: get it from huggingface.co/" in capsys.readouterr().err
    assert "tensorflow" not in sys.modules

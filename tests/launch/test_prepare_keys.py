"""launch/prepare.py: needs of keys that few configs set, and of stages that a run leaves out."""

from __future__ import annotations

import pytest

from rapo_jax.config.read import read_settings
from tests.launch.sweeps import load

prepare = load("prepare")


def needs_of(config, given=()):
    settings = read_settings(config, files=False)
    return {need.key: need for need in prepare.needs(settings, given)}


def test_a_flag_that_contradicts_the_model_is_named_as_by_the_run(paper):
    _, config = paper
    config["model"]["width"] = 1
    assert needs_of(config)["model.folder"].missing == ""
    assert "model.width" in needs_of(config, {"model.width"})["model.folder"].missing


@pytest.mark.parametrize("scoring", ["strict", "official"])
def test_math_verify_is_needed_by_strict_scoring_alone(paper, scoring):
    _, config = paper
    config["evaluate"]["scoring"] = scoring
    assert ("evaluate.scoring" in needs_of(config)) == (scoring == "strict")


def test_the_key_of_a_judge_is_needed_where_there_is_one(paper, monkeypatch):
    _, config = paper
    config["evaluate"]["judge"] |= {"url": "http://localhost:9/v1", "model": "m"}
    config["evaluate"]["judge"]["key_variable"] = "RAPO_TEST_KEY"
    assert "RAPO_TEST_KEY" in needs_of(config)["evaluate.judge"].missing
    monkeypatch.setenv("RAPO_TEST_KEY", "secret")
    assert needs_of(config)["evaluate.judge"].missing == ""


def test_a_run_that_makes_no_buffer_needs_no_traces(paper):
    _, config = paper
    assert "buffer.files" in needs_of(config)
    config["stages"] = ("evaluate",)
    assert "buffer.files" not in needs_of(config)

"""Modules beside a config file: those that it imports, and user code that it names."""

from __future__ import annotations

import json
import sys

import pytest

from rapo_jax.config.sources import resolve

CONFIG = """
from configs import default
from {module} import STEPS

def get_config():
    c = default.get_config()
    c.rl.steps = STEPS
    return c
"""


@pytest.fixture(autouse=True)
def path_of_modules(monkeypatch):
    monkeypatch.setattr(sys, "path", [*sys.path])


def test_a_config_file_may_import_one_beside_it(tmp_path):
    (tmp_path / "base_of_mine.py").write_text("STEPS = 17")
    (tmp_path / "mine.py").write_text(CONFIG.format(module="base_of_mine"))
    for _ in range(2):
        assert resolve(str(tmp_path / "mine.py")).config["rl"]["steps"] == 17
    assert sys.path.count(str(tmp_path)) == 1
    assert sys.path[-1] == str(tmp_path)  # last, so that it hides no module


def test_user_code_beside_the_config_file_is_found_when_a_workdir_continues(tmp_path):
    stored = {"rl": {"steps": 3}, "config_file": str(tmp_path / "there" / "mine.py")}
    (tmp_path / "config.json").write_text(json.dumps(stored))
    assert resolve(str(tmp_path / "config.json")).config["rl"]["steps"] == 3
    assert sys.path[-1] == str(tmp_path / "there")

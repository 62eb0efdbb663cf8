"""The keys of the config: each is declared once, and the reference follows from that."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from configs import default
from rapo_jax.config import KEYS, Settings
from rapo_jax.config.keys import keys_of
from rapo_jax.config.reference import FREQUENT, help_text, reference

ROOT = Path(__file__).parents[2]


def test_the_page_of_the_docs_is_the_generated_one():
    page = (ROOT / "docs" / "config.md").read_text(encoding="utf-8")
    assert page == reference(), "run: python -m rapo_jax.config > docs/config.md"


def test_every_key_and_every_group_says_what_it_means():
    assert all(key.meaning and not key.meaning.endswith(".") for key in KEYS.values())
    for name, key in KEYS.items():
        group = name.rpartition(".")[0]
        assert (f"\n## {group}\n" if group else "\n## Top level\n") in reference()
        assert f"| `{name.rpartition('.')[2]}` | `{key.type}`" in reference()
    assert "Settings(" not in reference()  # what a dataclass without a docstring is described by


def test_a_default_is_one_of_its_choices_and_within_its_bounds():
    for key in KEYS.values():
        if key.choices:
            values = key.value if isinstance(key.value, tuple) else (key.value,)
            assert set(values) <= set(key.choices)
        assert key.at_least is None or key.value >= key.at_least
        assert key.above is None or key.value > key.above
        assert key.at_most is None or key.value <= key.at_most


def test_the_reference_shows_choices_bounds_units_and_the_paper():
    rows = {line.split("`")[1]: line for line in reference().splitlines() if line.startswith("| `")}
    assert "`jit`: one jitted program<br>`host`: a Python loop" in rows["driver"]
    assert rows["ddof"].endswith("| ≥ 0, ≤ 1 | eqs. 9-10 |")
    assert rows["shard_gb"].endswith("| > 0 |  |")
    assert "| `float`, nats | `1e-06` |" in rows["entropy_floor"]


@pytest.mark.parametrize("name", FREQUENT)
def test_help_shows_the_defaults_of_the_keys_that_are_set_most_often(name):
    assert f"\n    --config.{name}={KEYS[name].value!r}: " in help_text()


def test_the_default_config_is_made_of_the_declarations_anew_each_time():
    first, second = default.get_config(), default.get_config()
    first.task.user_arguments.words = 3
    first.rl.steps = 1
    assert second.to_dict() == dataclasses.asdict(Settings())


def test_keys_are_named_by_their_groups_and_hold_the_values_of_the_settings():
    changed = dataclasses.replace(Settings(), buffer=dataclasses.replace(Settings().buffer, keep=3))
    assert keys_of(changed)["buffer.keep"].value == 3
    assert keys_of(changed)["buffer.keep"]._replace(value=5) == KEYS["buffer.keep"]

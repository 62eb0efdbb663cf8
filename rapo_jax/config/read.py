"""The one reader of config: a mapping becomes frozen settings, and every value is checked.

All errors are `ValueError`s that name the key, the value and the remedy, and they come before
anything is compiled.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rapo_jax.config import Settings
from rapo_jax.config.check_stages import METHODS, READERS, STAGES
from rapo_jax.config.check_suites import SUITE_KEYS
from rapo_jax.config.check_tasks import check_unscripted
from rapo_jax.config.reading import read_group
from rapo_jax.config.rules import CHOICES, check

__all__ = [
    "CHOICES",
    "METHODS",
    "READERS",
    "STAGES",
    "SUITE_KEYS",
    "check_unscripted",
    "read_settings",
]


def read_settings(config: Mapping[str, Any]) -> Settings:
    """Frozen, checked settings of a config mapping.

    Raises:
        ValueError: names the offending key, its value and the remedy.
    """
    settings = read_group(Settings, config, "")
    check(settings)
    return settings

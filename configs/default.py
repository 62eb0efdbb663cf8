"""The default config: every key with its default, as declared in rapo_jax/config/schema.

docs/config.md lists them all. Other configs start from this one and change what differs. Any key
can be set on the command line as --config.GROUP.KEY=VALUE.
"""

import dataclasses

from ml_collections import ConfigDict

from rapo_jax.config import Settings


def get_config() -> ConfigDict:
    return ConfigDict(dataclasses.asdict(Settings()))

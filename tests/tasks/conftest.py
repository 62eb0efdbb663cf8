from __future__ import annotations

import pytest

from rapo_jax.tasks import TASKS

PARAMETERS = {
    "seed": 3,
    "n_entities": 40,
    "n_train": 20,
    "n_eval": 10,
    "two_hop": 6,
    "number": 4,
    "hidden": 12,
    "hidden_number": 5,
}


@pytest.fixture(scope="session")
def parameters():
    return PARAMETERS


@pytest.fixture(scope="session")
def world():
    return TASKS["chains"].make_world(**PARAMETERS)

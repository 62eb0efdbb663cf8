"""Suites: question sets a policy is evaluated on as the paper does it, and what comes of it."""

from __future__ import annotations

from rapo_jax.suites.catalogue import SUITES, Suite, read_suites
from rapo_jax.suites.predictions import Predictions, Sampled, join_parts, prediction
from rapo_jax.suites.scores import FAILURES, RIGHT, open_judge, score_all, score_predictions
from rapo_jax.suites.summary import headline, summarise
from rapo_jax.suites.table import table

__all__ = [
    "FAILURES",
    "RIGHT",
    "SUITES",
    "Predictions",
    "Sampled",
    "Suite",
    "headline",
    "join_parts",
    "open_judge",
    "prediction",
    "read_suites",
    "score_all",
    "score_predictions",
    "summarise",
    "table",
]

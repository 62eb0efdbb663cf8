"""Configs: each file of configs/ is valid, each ablation is a value, and errors name the key."""

from __future__ import annotations

import dataclasses
import importlib
import re
from pathlib import Path

import pytest

from configs import default
from rapo_jax.config import KEYS, STAGES, Settings
from rapo_jax.config.read import read_settings
from rapo_jax.method.clipping import CLIPPINGS
from rapo_jax.method.rewards import QUALITIES, TIMINGS
from rapo_jax.method.sums import AGGREGATIONS
from rapo_jax.rollout.branching import BRANCHINGS
from rapo_jax.scoring.answers import RULES
from rapo_jax.stages.buffer_sources import AGENTS
from rapo_jax.tasks import METRICS, TASKS
from rapo_jax.tools.search_apis import APIS
from rapo_jax.train.removal import RETRIEVED_TRACES

CONFIGS = sorted(
    path.stem
    for path in (Path(__file__).parents[2] / "configs").glob("*.py")
    if path.stem != "__init__"
)


def refused(settings_of, changes):
    with pytest.raises(ValueError) as caught:
        settings_of(changes)
    return str(caught.value)


@pytest.mark.parametrize("name", CONFIGS)
def test_every_config_of_the_project_is_valid(name):
    config = importlib.import_module(f"configs.{name}").get_config().to_dict()
    traces = config["buffer"]["files"]  # need not exist for this test
    settings = read_settings(
        config | {"buffer": config["buffer"] | {"files": [__file__] * len(traces)}}
    )
    assert [stage for stage in STAGES if stage in settings.stages] == list(settings.stages)
    assert dataclasses.asdict(settings).keys() == config.keys()


def test_settings_cannot_be_changed(small_settings):
    with pytest.raises(dataclasses.FrozenInstanceError):
        small_settings().rl.steps = 3


def test_only_rapo_has_hybrid_rollouts(small_settings):
    found = {m: small_settings({"method": m}).n_hybrid for m in ("rapo", "grpo", "sft")}
    assert found == {"rapo": 2, "grpo": 0, "sft": 0}


@pytest.mark.parametrize(
    ("key", "hint"),
    [
        ("sed", "sed: unknown config key; did you mean seed?"),
        ("rl.stpes", "rl.stpes: unknown config key; did you mean rl.steps?"),
        ("task.chains.hiden", "task.chains.hiden: unknown config key; did you mean task.chains.h"),
        ("rl.zzz", "rl.zzz: unknown config key; known: steps, m, a, "),
    ],
)
def test_an_unknown_key_is_refused_with_the_nearest_known_one(small_settings, key, hint):
    assert refused(small_settings, {key: 1}).startswith(hint)


@pytest.mark.parametrize("key", ["seed", "rl", "rl.m", "task.chains.number"])
def test_a_missing_key_is_named(small_config, key):
    config = small_config()
    *groups, leaf = key.split(".")
    group = config
    for name in groups:
        group = group[name]
    del group[leaf]
    assert refused(read_settings, config).startswith(f"{key}: missing config key; start your")


@pytest.mark.parametrize(
    ("key", "value", "wanted"),
    [
        ("rl.steps", "3", "expected int"),
        ("rl.steps", 3.0, "expected int"),
        ("rl.steps", True, "expected int"),
        ("rl.m", "0.1", "expected float"),
        ("rl.m", True, "expected float"),
        ("method", 3, "expected str"),
        ("log.tensorboard", 1, "expected bool"),
        ("stages", "rl", "expected a tuple such as"),
        ("stages", 3, "expected a tuple such as"),
        ("rl.buckets", (64, "96"), "expected int"),
        ("rl", 3, "expected a group of keys"),
        ("rl.m", None, "expected float"),
    ],
)
def test_a_value_of_another_type_is_refused(small_settings, key, value, wanted):
    text = refused(small_settings, {key: value})
    assert text.startswith(key) and wanted in text


def test_whole_numbers_may_stand_for_floats_and_lists_for_tuples(small_settings):
    found = small_settings({"rl.m": 0, "rl.buckets": [64, 96]})
    assert found.rl.m == 0.0 and isinstance(found.rl.m, float)
    assert found.rl.buckets == (64, 96)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rollout.group_size": 1}, "rollout.group_size=1: a group-relative advantage needs at l"),
        ({"rollout.n_hybrid": 5}, "rollout.n_hybrid=5: hybrid rollouts are part of the group"),
        ({"rollout.n_hybrid": -1}, "rollout.n_hybrid=-1: "),
        ({"rollout.max_tokens": 20}, "rollout.max_tokens=20: a row holds the prompt too"),
        ({"rl.mini_batches": 3}, "rl.mini_batches=3: must divide rollout.questions=2"),
        ({"rl.buckets": (48,)}, "rl.buckets=(48,): the widest must hold rollout.max_tokens=96"),
        ({"rl.buckets": (96, 48)}, "rl.buckets=(96, 48): ascending row widths"),
        ({"rl.buckets": ()}, "rl.buckets=(): ascending row widths"),
        ({"retrieval.noise": float("nan")}, "retrieval.noise=nan: a probability lies"),
        ({"buffer.keep": 3}, "buffer.keep=3: cannot keep more than buffer.samples=2"),
        ({"buffer.agent": "checkpoint"}, "buffer.checkpoint='': buffer.agent='checkpoint' needs"),
        ({"buffer.agent": "none"}, "buffer.files=(): buffer.agent='none' needs files of traces"),
        ({"buffer.files": ("no.jsonl",)}, "buffer.files='no.jsonl': there is no such file"),
        (
            {"task.metric": "maths"},
            "task.metric='maths': expected one of f1, math; did you mean 'm",
        ),
        ({"tools.search.kind": "serp"}, "tools.search.kind='serp': expected one of local, retri"),
        (
            {"tools.python.require": ("secomp",)},
            "tools.python.require='secomp': expected one of all, user, mount",
        ),
        ({"model.kv_heads": 3}, "model.kv_heads=3: must divide model.heads=2"),
        ({"model.head_width": 7}, "model.head_width=7: must be even"),
        ({"model.rope_high_freq": 1.0}, "model.rope_high_freq=1.0: must be more than model.rope_l"),
        ({"evaluate.samples": 4}, "evaluate.samples=4: greedy samples of a question are all the"),
        ({"evaluate.scoring": "strikt"}, "evaluate.scoring='strikt': expected one of official, "),
        (
            {"evaluate.suites": ("gsm8k,math",)},
            "evaluate.suites='gsm8k,math': write a tuple: --config.evaluate.suites=\"('gsm8k','ma",
        ),
        ({"evaluate.judge.url": "localhost"}, "evaluate.judge.url='localhost': the base of an"),
        ({"evaluate.judge.url": "http://x"}, "evaluate.judge.model='': name the model"),
        (
            {"method": "rappo"},
            "method='rappo': expected one of rapo, grpo, dapo, ",
        ),
        ({"rl.quality": "increasing"}, "rl.quality='increasing': expected one of decrease, "),
        ({"stages": ("rl", "eval")}, "stages='eval': expected one of sft, buffer, rl, evaluate, "),
    ],
)
def test_a_value_that_cannot_work_is_refused_with_its_key_and_a_remedy(
    small_settings, changes, message
):
    text = refused(small_settings, changes)
    assert text.startswith(message), text
    assert re.match(r"[a-z_.]+=.+: .+", text)


SECRET = "s3cret-of-the-user"
ENDPOINT = {"buffer.agent": "endpoint", "buffer.endpoint.model": "m"}
JUDGE = {"evaluate.judge.model": "m"}


@pytest.mark.parametrize(
    "changes",
    [
        ENDPOINT | {"buffer.endpoint.url": f"http://me:{SECRET}@host/v1"},
        ENDPOINT | {"buffer.endpoint.url": f"host/v1?key={SECRET}"},
        ENDPOINT | {"buffer.endpoint.url": "http://h", "buffer.endpoint.key_variable": SECRET},
        JUDGE | {"evaluate.judge.url": f"http://me:{SECRET}@host/v1"},
        JUDGE | {"evaluate.judge.url": f"http://host/v1?key={SECRET}"},
        JUDGE | {"evaluate.judge.url": f"me:{SECRET}@host/v1"},
    ],
)
def test_a_key_in_the_wrong_place_is_refused_and_not_printed(small_settings, changes):
    text = refused(small_settings, {"stages": ("buffer",)} | changes)
    assert SECRET not in text and re.match(r"[a-z_.]+(url|key_variable)(='.*')?: ", text), text


@pytest.mark.parametrize(
    ("key", "table"),
    [
        ("rl.quality", QUALITIES),
        ("rl.timing", TIMINGS),
        ("rl.aggregation", AGGREGATIONS),
        ("buffer.agent", AGENTS),
        ("rollout.driver", {"jit", "host"}),  # both of which the tests of the rollout drive
        ("task.name", {*TASKS, "module:TASK"}),
        ("task.metric", METRICS),
        ("tools.search.kind", {"local", *APIS}),
        ("evaluate.scoring", RULES),
        ("rl.clipping", CLIPPINGS),
        ("rl.retrieved_traces", RETRIEVED_TRACES),
        ("rollout.branching", BRANCHINGS),
    ],
)
def test_the_known_names_are_those_of_the_table_that_is_chosen_from(key, table):
    assert set(KEYS[key].choices) == set(table)


def by_name(key):
    return key.name


NEEDED = {
    "explicit": {"distributed.coordinator": "10.0.0.1:1234", "distributed.processes": 2},
    "checkpoint": {"buffer.checkpoint": "."},
    "search_index": {"search_index.corpus": "corpus.jsonl"},
    "none": {"buffer.files": (__file__,)},
    "endpoint": {"buffer.endpoint.url": "http://localhost:8000/v1", "buffer.endpoint.model": "m"},
    **dict.fromkeys(
        ("search_r1", "search_o1", "tool_star", "chat_tools", "module:NAME"),
        {"stages": ("rl", "evaluate"), "method": "grpo"},
    ),
    "dataset": {
        "stages": ("rl", "evaluate"),
        "model.folder": "model",
        "task.dataset.train": "gsm8k:train",
        "task.dataset.eval": "gsm8k:test",
        "task.dataset.documents": "corpus.jsonl",
    },
}
"""Choice -> the other keys that it needs."""


@pytest.mark.parametrize("key", [key for key in KEYS.values() if key.choices], ids=by_name)
def test_every_choice_gives_valid_settings_and_no_other_name_does(small_settings, key):
    for name in (*key.choices, "no such name"):
        changes = {key.name: (name,) if isinstance(key.value, tuple) else name}
        if name in key.choices:
            small_settings(changes | NEEDED.get(name, {}))
        else:
            message = refused(small_settings, changes)
            assert message.startswith(f"{key.name}='no such name': expected one of ")


@pytest.mark.parametrize(
    ("bound", "beyond", "words"),
    [("at_least", -1, "at least"), ("above", 0, "more than"), ("at_most", 1, "at most")],
)
def test_a_value_beyond_its_bound_is_refused_by_its_key(small_settings, bound, beyond, words):
    bounded = [key for key in KEYS.values() if getattr(key, bound) is not None]
    assert bounded
    for key in bounded:
        limit = getattr(key, bound)
        value = type(key.value)(limit + beyond)
        remedy = key.remedy or f"must be {words} {limit}"
        assert refused(small_settings, {key.name: value}) == f"{key.name}={value}: {remedy}"


ABLATIONS = {
    "GRPO": {"method": "grpo"},
    "GRPO as no hybrid rollouts": {"rollout.n_hybrid": 0},
    "SFT": {"method": "sft"},
    "w/o RPO": {"rl.m": 0.0, "rl.a": 0.0},
    "w/o RR": {"rl.a": 0.0},
    "w/o RIS": {"rl.m": 0.0},
    "w/o RQ": {"rl.quality": "off"},
    "w/o RT": {"rl.timing": "off"},
    "w/ TO": {"retrieval.unit": "trajectory"},
    "entropy increase": {"rl.quality": "increase"},
    "low-entropy timing": {"rl.timing": "low"},
    "both": {"rl.quality": "increase", "rl.timing": "low"},
    "noise": {"retrieval.noise": 0.4},
    "only noise": {"retrieval.noise": 1.0},
    "every rollout hybrid": {"rollout.n_hybrid": 4},
    "DAPO's token mean": {"rl.aggregation": "token_mean", "rl.clip_high": 0.3},
    "KL penalty": {"rl.kl": 0.01},
    "population standard deviation": {"rl.ddof": 0},
    "no answer steps": {"buffer.include_answers": False},
    "not of the same question": {"retrieval.exclude_same_question": True},
    "a weaker off-policy agent": {"buffer.expert_error": 0.5},
    "traces from a file": {"buffer.agent": "none", "buffer.files": (__file__,)},
    "traces from a file beside the expert's": {"buffer.files": (__file__,)},
    "maths answers": {"task.metric": "math"},
    "another agent": {"buffer.agent": "checkpoint", "buffer.checkpoint": "/"},
}


@pytest.mark.parametrize("changes", ABLATIONS.values(), ids=ABLATIONS)
def test_every_ablation_is_a_config_value(small_settings, changes):
    base, found = small_settings(), small_settings(changes)
    assert isinstance(found, Settings) and found != base


def test_the_defaults_are_the_papers():
    rl, rollout = (getattr(default.get_config(), name) for name in ("rl", "rollout"))
    assert (rl.m, rl.a, rl.clip_low, rl.clip_high, rl.kl) == (0.05, 0.2, 0.28, 0.28, 0.0)
    assert (rl.quality, rl.timing, rl.aggregation) == ("decrease", "high", "sequence_mean")
    assert (rollout.questions, rollout.group_size, rollout.n_hybrid) == (32, 16, 8)
    assert rl.mini_batches == 2
    assert (rollout.max_calls, rollout.temperature) == (3, 1.0)
    retrieval, buffer = (getattr(default.get_config(), name) for name in ("retrieval", "buffer"))
    assert (retrieval.probability, retrieval.noise, retrieval.unit) == (0.5, 0.0, "step")
    assert (buffer.samples, buffer.keep) == (16, 5)

"""Rules that the values of a config must satisfy; errors name the key, its value and a remedy.

Choices and bounds are declared with the keys (`schema/`); here are the rules that join several.
Each function of rules yields (key, whether it holds, remedy); a rule may rely on those before it.
"""

from __future__ import annotations

import difflib
import math
import operator
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NoReturn
from urllib.parse import urlsplit

from rapo_jax.config import KEYS, NO_WEIGHTS, READERS, Settings
from rapo_jax.config.keys import Key, keys_of, names
from rapo_jax.config.training_rules import Rule, method_rules, rollout_rules
from rapo_jax.io.api_keys import mask, read_api_key
from rapo_jax.io.hub import is_hub_name

MODEL_FOLDERS = (
    *("model.folder", "tokenizer.folder", "buffer.checkpoint"),
    *("retrieval.encoder_folder", "search_index.encoder_folder"),
)
"""Keys that take names of the Hugging Face hub too."""


def check(s: Settings, *, files: bool = True) -> None:
    """Raises ValueError if settings are invalid.

    `files`: also where traces, a model of the hub or an API key are not on this machine.
    """
    for key in keys_of(s).values():
        _check_choices(key)
        _check_bounds(key)
    for rules in (
        _distributed,
        _model,
        rollout_rules,
        method_rules,
        _evaluate,
        _search,
        _buffer,
        _task,
    ):
        _enforce(s, rules(s))
    if files:
        _check_files(s)


def check_unscripted(s: Settings) -> None:
    """Raises ValueError if settings need a task with scripted agents."""
    _enforce(s, _unscripted(s))


def _enforce(s: Settings, rules: Iterable[Rule]) -> None:
    for key, holds, remedy in rules:
        if not holds:
            _refuse(key, operator.attrgetter(key)(s), remedy)


def _refuse(key: str, value: object, remedy: str) -> NoReturn:
    raise ValueError(f"{key}={value!r}: {remedy}")


def _check_choices(key: Key) -> None:
    value = key.value
    if isinstance(value, tuple) and key.choices:
        _check_cut(key.name, value)
    elif isinstance(value, str) and key.choices:
        value = names(value) if key.several else (value,)
    else:
        return
    for name in value:
        fits_pattern = ":" in name and any(":" in choice for choice in key.choices)
        if name not in key.choices and not fits_pattern:
            near = difflib.get_close_matches(name, key.choices, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            _refuse(key.name, name, f"expected one of {', '.join(key.choices)}{hint}")


def _check_cut(key: str, value: tuple[str, ...]) -> None:
    """Refuses a name with a comma: the flag --config.stages=rl,evaluate gives ('rl,evaluate',)."""
    for name in value:
        if "," in name:
            parts = [part.strip(" '\"()[]") for part in name.split(",")]
            working = "(" + ",".join(repr(part) for part in parts if part) + ")"
            _refuse(key, name, f'write a tuple: --config.{key}="{working}"')


def _check_bounds(key: Key) -> None:
    if not isinstance(key.value, int | float):
        return
    for bound, holds, words in (
        (key.at_least, operator.ge, "at least"),
        (key.above, operator.gt, "more than"),
        (key.at_most, operator.le, "at most"),
    ):
        if bound is not None and not holds(key.value, bound):
            _refuse(key.name, key.value, key.remedy or f"must be {words} {bound}")
    if not math.isfinite(key.value):
        _refuse(key.name, key.value, "must be a finite number")


def _distributed(s: Settings) -> Iterator[Rule]:
    d = s.distributed
    if d.mode == "explicit":
        host, _, port = d.coordinator.rpartition(":")
        remedy = "host:port of process 0, '10.0.0.1:1234'"
        yield "distributed.coordinator", bool(host) and port.isdigit(), remedy
        remedy = f"0 … distributed.processes={d.processes} - 1"
        yield "distributed.process", 0 <= d.process < d.processes, remedy
    else:
        for key in ("coordinator", "processes", "process"):
            name = f"distributed.{key}"
            remedy = "only distributed.mode='explicit' reads it"
            yield name, getattr(d, key) == KEYS[name].value, remedy
    one_process = f"{', '.join(READERS[:-1])} and {READERS[-1]} run in one process"
    remedy = f"{one_process}: set distributed.mode='off'"
    yield "stages", d.mode == "off" or not set(s.stages) & set(READERS), remedy


def _missing_models(s: Settings) -> Iterator[tuple[str, str]]:
    """(key, name) of the hub's models that the stages need and that are not in the cache."""
    stages = set(s.stages)
    weights = not stages <= NO_WEIGHTS
    needed = {
        "model.folder": weights,
        "tokenizer.folder": weights,
        "buffer.checkpoint": "buffer" in stages and "checkpoint" in s.buffer.agents,
        "retrieval.encoder_folder": weights and s.retrieval.encoder == "minilm",
        "search_index.encoder_folder": "search_index" in stages,
    }
    for key in MODEL_FOLDERS:
        for folder in names(operator.attrgetter(key)(s)) if needed[key] else ():
            if is_hub_name(folder):  # a name that is in the cache was replaced by its folder
                yield key, folder


def missing_models(s: Settings) -> list[str]:
    """Names of the hub's models that the stages need and that are not in the cache."""
    return list(dict.fromkeys(name for _, name in _missing_models(s)))


def _check_files(s: Settings) -> None:
    b, stages = s.buffer, set(s.stages)
    for key, name in _missing_models(s):
        remedy = "there is no such folder, and no model of this name in the Hugging Face "
        remedy += f"cache; if it is one of the hub, fetch it: hf download {name}"
        _refuse(key, name, remedy)
    if s.sft.folder and (Path(s.sft.folder) / "config.json").is_file():
        remedy = "no cold start but the workdir of a run, whose cold start is in coldstart, or a "
        remedy += "Hugging Face model (model.folder), such as the stage 'export' writes"
        _refuse("sft.folder", s.sft.folder, remedy)
    if "buffer" in stages and "endpoint" in b.agents:
        read_api_key(b.endpoint.key_variable, key="buffer.endpoint.key_variable")
    for folder in b.checkpoints if "buffer" in stages and "checkpoint" in b.agents else ():
        if not Path(folder).is_dir():
            _refuse("buffer.checkpoint", folder, "there is no such folder")
    for file in b.files if "buffer" in stages else ():
        if not Path(file).is_file():
            _refuse("buffer.files", file, "there is no such file")


def _model(s: Settings) -> Iterator[Rule]:
    m, targets = s.model, s.model.lora.targets
    yield "model.kv_heads", m.heads % m.kv_heads == 0, f"must divide model.heads={m.heads}"
    yield "model.head_width", m.head_width % 2 == 0, "must be even"
    remedy = f"must be more than model.rope_low_freq={m.rope_low_freq}"
    yield "model.rope_high_freq", m.rope_high_freq > m.rope_low_freq, remedy
    known = ", ".join(KEYS["model.lora.targets"].choices)
    once = len(set(targets)) == len(targets) > 0
    yield "model.lora.targets", once, f"name each kernel to adapt once: some of {known}"


def _evaluate(s: Settings) -> Iterator[Rule]:
    e, judge = s.evaluate, s.evaluate.judge
    _check_cut("evaluate.suites", e.suites)
    yield "evaluate.suites", all(map(str.strip, e.suites)), "name published sets or files"
    remedy = "greedy samples of a question are all the same: set evaluate.temperature, such as 0.7"
    yield "evaluate.samples", e.samples == 1 or e.temperature > 0, remedy
    every = s.log.samples_every
    remedy = "samples are taken from the held-out evaluations: a multiple of "
    remedy += f"evaluate.every={e.every}, which must be set"
    yield "log.samples_every", not every or (e.every > 0 and every % e.every == 0), remedy
    if judge.url:
        _check_endpoint("evaluate.judge", judge.url)
        yield "evaluate.judge.model", bool(judge.model), "name the model of the judge"


def _search(s: Settings) -> Iterator[Rule]:
    search = s.tools.search
    remedy = f"only tools.search.kind='local' reads it, not {search.kind!r}"
    yield "tools.search.index", not search.index or search.kind == "local", remedy
    named = "search_index" not in s.stages or bool(s.search_index.corpus.strip())
    remedy = "name JSON lines of {id, contents} or {id, title, text}, plain or gzip"
    yield "search_index.corpus", named, remedy


def _buffer(s: Settings) -> Iterator[Rule]:
    b, agents = s.buffer, s.buffer.agents
    known = ", ".join(KEYS["buffer.agent"].choices)
    yield "buffer.agent", bool(agents), f"name one or more of {known}"
    once = len(set(agents)) == len(agents) and ("none" not in agents or len(agents) == 1)
    yield "buffer.agent", once, "name each agent once, and 'none' alone"
    remedy = f"cannot keep more than buffer.samples={b.samples}"
    yield "buffer.keep", b.keep <= b.samples, remedy
    remedy = "buffer.agent='checkpoint' needs the checkpoint folder of the agent to sample"
    yield "buffer.checkpoint", "checkpoint" not in agents or bool(b.checkpoints), remedy
    remedy = "buffer.agent='none' needs files of traces to fill the buffer with"
    yield "buffer.files", agents != ("none",) or bool(b.files), remedy
    yield "retrieval.mask", _is_regex(s.retrieval.mask), "no regular expression of Python's re"
    if "endpoint" in agents:
        _check_endpoint("buffer.endpoint", b.endpoint.url)
        yield "buffer.endpoint.model", bool(b.endpoint.model), "name the model to ask for"


def _is_regex(text: str) -> bool:
    try:
        re.compile(text)
    except re.error:
        return False
    return True


def _check_endpoint(key: str, url: str) -> None:
    try:
        base = urlsplit(url)
        _ = base.port  # raises ValueError, too
    except ValueError:
        base = urlsplit("")
    if base.scheme not in ("http", "https") or not base.hostname:
        remedy = "the base of an endpoint, such as http://localhost:8000/v1"
        _refuse(f"{key}.url", "***" if "@" in url else mask(url), remedy)
    if "@" in base.netloc or base.query:
        _refuse(
            f"{key}.url",
            "***",
            "holds a name, password or parameters, which would be kept in config.json; put the key "
            f"into an environment variable, and its name into {key}.key_variable",
        )


def _task(s: Settings) -> Iterator[Rule]:
    user_task = ":" in s.task.name
    remedy = "only task.name='module:TASK' reads it"
    yield "task.user_arguments", user_task or not s.task.user_arguments, remedy
    if s.task.name != "dataset":
        return
    d, search = s.task.dataset, s.tools.search
    remedy = "task.name='dataset' needs a file of questions or a published set, as 'gsm8k:train'"
    yield "task.dataset.train", bool(d.train.strip()) or s.suites_alone, remedy
    yield "task.dataset.eval", bool(d.eval.strip()) or s.suites_alone, remedy
    user_search = any(pair[:1] == ("search",) for pair in s.tools.user_tools)
    given = search.kind != "local" or user_search or bool(search.index or d.documents)
    remedy = "tools.search.kind='local' searches this corpus (JSON lines): name one, or search a "
    remedy += "service (tools.search.kind='retrieval')"
    yield "task.dataset.documents", given, remedy
    yield from _unscripted(s)


def _unscripted(s: Settings) -> Iterator[Rule]:
    has_no = f"task.name={s.task.name!r} has no"
    remedy = f"{has_no} scripted agent to learn from: name a Hugging Face folder of an instruct "
    remedy += "model"
    yield "model.folder", bool(s.model.folder), remedy
    remedy = f"{has_no} demonstrations for a cold start: leave 'sft' out and start from "
    remedy += "model.folder"
    yield "stages", "sft" not in s.stages, remedy
    remedy = f"{has_no} scripted agent: bring traces (buffer.files with buffer.agent='none') or "
    remedy += "sample a policy (buffer.agent='checkpoint' or 'endpoint')"
    others = "scripted" not in s.buffer.agents or "buffer" not in s.stages
    yield "buffer.agent", others, remedy
    gate = f"{has_no} decisions to measure a gate by: set it to 0"
    yield "sft.gate_one_hop", s.sft.gate_one_hop == 0, gate
    yield "sft.gate_follow", s.sft.gate_follow == 0, gate

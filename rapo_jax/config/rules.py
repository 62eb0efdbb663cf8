"""What the values of a config must satisfy. Every refusal names the key, its value and the remedy.

Choices and bounds are declared with the keys (`schema/`); here are the rules that join several.
"""

from __future__ import annotations

import difflib
import operator
import os
from pathlib import Path
from typing import NoReturn
from urllib.parse import urlsplit

from rapo_jax.config import KEYS, READERS, EndpointSettings, Settings
from rapo_jax.config.keys import Key, keys_of, names


def check(s: Settings) -> None:
    """Refuses settings that cannot work. Raises ValueError."""
    for key in keys_of(s).values():
        _check_choices(key)
        _check_bounds(key)
    _check_distributed(s)
    _check_model(s)
    _check_rollout(s)
    _check_evaluate(s)
    _check_search(s)
    _check_buffer(s)
    user_task = ":" in s.task.name
    remedy = "only task.name='module:TASK' reads it"
    _require(user_task or not s.task.user_arguments, s, "task.user_arguments", remedy)
    if s.task.name == "dataset":
        _check_dataset(s)


def check_unscripted(s: Settings) -> None:
    """Refuses what only a task with scripted agents can do. Raises ValueError."""
    gate = "decisions to measure a gate by: set it to 0"
    for key, holds, remedy in (
        (
            "model.folder",
            bool(s.model.folder),
            "scripted agent to learn from: name a Hugging Face folder of an instruct model",
        ),
        (
            "stages",
            "sft" not in s.stages,
            "demonstrations for a cold start: leave 'sft' out and start from model.folder",
        ),
        (
            "buffer.agent",
            "scripted" not in s.buffer.agents or "buffer" not in s.stages,
            "scripted agent: bring traces (buffer.files with buffer.agent='none') or sample a "
            "policy (buffer.agent='checkpoint' or 'endpoint')",
        ),
        ("sft.gate_one_hop", s.sft.gate_one_hop == 0, gate),
        ("sft.gate_follow", s.sft.gate_follow == 0, gate),
    ):
        _require(holds, s, key, f"task.name={s.task.name!r} has no {remedy}")


def _refuse(key: str, value: object, remedy: str) -> NoReturn:
    raise ValueError(f"{key}={value!r}: {remedy}")


def _require(holds: bool, s: Settings, key: str, remedy: str) -> None:
    if not holds:
        _refuse(key, _value(s, key), remedy)


def _value(s: Settings, key: str) -> object:
    return operator.attrgetter(key)(s)


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


def _check_distributed(s: Settings) -> None:
    d = s.distributed
    host, _, port = d.coordinator.rpartition(":")
    for key, holds, remedy in (
        ("coordinator", bool(host) and port.isdigit(), "host:port of process 0, '10.0.0.1:1234'"),
        (
            "process",
            0 <= d.process < d.processes,
            f"0 … distributed.processes={d.processes} - 1",
        ),
    ):
        _require(holds or d.mode != "explicit", s, f"distributed.{key}", remedy)
    for key in ("distributed.coordinator", "distributed.processes", "distributed.process"):
        unset = _value(s, key) == KEYS[key].value
        _require(unset or d.mode == "explicit", s, key, "only distributed.mode='explicit' reads it")
    readers = f"{', '.join(READERS[:-1])} and {READERS[-1]} run in one process: "
    alone = d.mode == "off" or not set(s.stages) & set(READERS)
    _require(alone, s, "stages", f"{readers}set distributed.mode='off'")


def _check_model(s: Settings) -> None:
    m, targets = s.model, s.model.lora.targets
    _require(m.heads % m.kv_heads == 0, s, "model.kv_heads", f"must divide model.heads={m.heads}")
    _require(m.head_width % 2 == 0, s, "model.head_width", "must be even")
    _require(
        m.rope_high_freq > m.rope_low_freq,
        s,
        "model.rope_high_freq",
        f"must be more than model.rope_low_freq={m.rope_low_freq}",
    )
    _require(
        len(set(targets)) == len(targets) > 0,
        s,
        "model.lora.targets",
        "name each kernel to adapt once: some of " + ", ".join(KEYS["model.lora.targets"].choices),
    )


def _check_rollout(s: Settings) -> None:
    r = s.rollout
    divides = f"must divide rollout.questions={r.questions}"
    _require(r.questions % r.chunks == 0, s, "rollout.chunks", divides)
    _require(
        0 <= r.n_hybrid <= r.group_size,
        s,
        "rollout.n_hybrid",
        f"hybrid rollouts are part of the group: 0 … rollout.group_size={r.group_size}",
    )
    _require(
        r.max_tokens > r.prompt_tokens,
        s,
        "rollout.max_tokens",
        f"a row holds the prompt too: more than rollout.prompt_tokens={r.prompt_tokens}",
    )
    _require(
        r.questions % s.rl.mini_batches == 0,
        s,
        "rl.mini_batches",
        f"{divides}: a group stays in one mini-batch",
    )
    ascending = "ascending row widths in tokens, such as (64, 128)"
    buckets = s.rl.buckets
    _require(bool(buckets) and tuple(sorted(buckets)) == buckets, s, "rl.buckets", ascending)
    widest = f"the widest must hold rollout.max_tokens={r.max_tokens}"
    _require(buckets[-1] >= r.max_tokens, s, "rl.buckets", widest)


def _check_evaluate(s: Settings) -> None:
    e = s.evaluate
    _check_cut("evaluate.suites", e.suites)
    for name in e.suites:
        if not name.strip():
            _refuse("evaluate.suites", name, "name a published set or a file")
    _require(
        e.samples == 1 or e.temperature > 0,
        s,
        "evaluate.samples",
        "greedy samples of a question are all the same: set evaluate.temperature, such as 0.7",
    )
    if e.judge.url:
        web = e.judge.url.startswith(("http://", "https://"))
        _require(web, s, "evaluate.judge.url", "the base of an endpoint, http://… or https://…")
        _require(bool(e.judge.model), s, "evaluate.judge.model", "name the model of the judge")


def _check_search(s: Settings) -> None:
    _require(
        not s.tools.search.index or s.tools.search.kind == "local",
        s,
        "tools.search.index",
        f"only tools.search.kind='local' reads it, not {s.tools.search.kind!r}",
    )
    _require(
        "search_index" not in s.stages or bool(s.search_index.corpus.strip()),
        s,
        "search_index.corpus",
        "name JSON lines of {id, contents} or {id, title, text}, plain or gzip",
    )


def _check_buffer(s: Settings) -> None:
    b = s.buffer
    some = f"name one or more of {', '.join(KEYS['buffer.agent'].choices)}"
    _require(bool(b.agents), s, "buffer.agent", some)
    _require(
        len(set(b.agents)) == len(b.agents) and ("none" not in b.agents or len(b.agents) == 1),
        s,
        "buffer.agent",
        "name each agent once, and 'none' alone",
    )
    most = f"cannot keep more than buffer.samples={b.samples}"
    _require(b.keep <= b.samples, s, "buffer.keep", most)
    _require(
        "checkpoint" not in b.agents or bool(b.checkpoints),
        s,
        "buffer.checkpoint",
        "buffer.agent='checkpoint' needs the checkpoint folder of the agent to sample",
    )
    _require(
        b.agents != ("none",) or bool(b.files),
        s,
        "buffer.files",
        "buffer.agent='none' needs files of traces to fill the buffer with",
    )
    if "endpoint" in b.agents:
        _check_endpoint(b.endpoint, will_call="buffer" in s.stages)
    if "buffer" in s.stages:
        for file in b.files:
            if not Path(file).is_file():
                _refuse("buffer.files", file, "there is no such file")


def _check_endpoint(n: EndpointSettings, *, will_call: bool) -> None:
    key, place = "buffer.endpoint", urlsplit(n.url)
    if place.scheme not in ("http", "https") or not place.hostname:
        shown = "***" if "@" in n.url else n.url
        _refuse(f"{key}.url", shown, "the base of an endpoint, such as http://localhost:8000/v1")
    if "@" in place.netloc or place.query:
        _refuse(
            f"{key}.url",
            "***",
            "holds a name, password or parameters, which would be kept in config.json; put the key "
            f"into an environment variable, and its name into {key}.key_variable",
        )
    if not n.model:
        _refuse(f"{key}.model", n.model, "name the model to ask for")
    if will_call and n.key_variable and not os.environ.get(n.key_variable):
        remedy = "this environment variable is empty or not set; put the endpoint's key into it"
        _refuse(f"{key}.key_variable", n.key_variable, remedy)


def _check_dataset(s: Settings) -> None:
    """A data set has questions only: no corpus unless one is named, and no scripted agent."""
    d = s.task.dataset
    for key, value in (("task.dataset.train", d.train), ("task.dataset.eval", d.eval)):
        remedy = "needs a file of questions or a published set, as 'gsm8k:train'"
        _require(bool(value.strip()) or s.suites_alone, s, key, f"task.name='dataset' {remedy}")
    user_search = any(pair[:1] == ("search",) for pair in s.tools.user_tools)
    _require(
        s.tools.search.kind != "local" or user_search or bool(s.tools.search.index or d.documents),
        s,
        "task.dataset.documents",
        "tools.search.kind='local' searches this corpus (JSON lines): name one, or search a "
        "service (tools.search.kind='retrieval')",
    )
    check_unscripted(s)

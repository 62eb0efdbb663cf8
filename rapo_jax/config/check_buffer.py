"""Who fills the Step-Trace Buffer, and what each of them needs."""

from __future__ import annotations

import os
from pathlib import Path
from urllib.parse import urlsplit

from rapo_jax.config import EndpointSettings, Settings
from rapo_jax.config.require import one_of, require

AGENTS = ("scripted", "checkpoint", "endpoint", "none")


def check_buffer(s: Settings) -> None:
    b = s.buffer
    require(bool(b.agents), "buffer.agent", b.agent, f"name one or more of {', '.join(AGENTS)}")
    for name in b.agents:
        one_of("buffer.agent", name, AGENTS)
    require(
        len(set(b.agents)) == len(b.agents) and ("none" not in b.agents or len(b.agents) == 1),
        "buffer.agent",
        b.agent,
        "name each agent once, and 'none' alone",
    )
    require(
        b.keep <= b.samples,
        "buffer.keep",
        b.keep,
        f"cannot keep more than buffer.samples={b.samples}",
    )
    require(b.temperature >= 0, "buffer.temperature", b.temperature, "must be at least 0")
    require(
        "checkpoint" not in b.agents or bool(b.checkpoints),
        "buffer.checkpoint",
        b.checkpoint,
        "buffer.agent='checkpoint' needs the checkpoint folder of the agent to sample",
    )
    require(
        b.agents != ("none",) or bool(b.files),
        "buffer.files",
        b.files,
        "buffer.agent='none' needs files of traces to fill the buffer with",
    )
    if "endpoint" in b.agents:
        _check_endpoint(b.endpoint)
    if "buffer" not in s.stages:
        return
    for file in b.files:
        require(Path(file).is_file(), "buffer.files", file, "there is no such file")
    variable = b.endpoint.key_variable
    require(
        "endpoint" not in b.agents or not variable or bool(os.environ.get(variable)),
        "buffer.endpoint.key_variable",
        variable,
        "this environment variable is empty or not set; put the endpoint's key into it",
    )


def _check_endpoint(n: EndpointSettings) -> None:
    key = "buffer.endpoint"
    place = urlsplit(n.url)
    require(
        place.scheme in ("http", "https") and bool(place.hostname),
        f"{key}.url",
        "***" if "@" in n.url else n.url,
        "the base of an endpoint, such as http://localhost:8000/v1",
    )
    require(
        "@" not in place.netloc and not place.query,
        f"{key}.url",
        "***",
        "holds a name, password or parameters, which would be kept in config.json; put the key "
        f"into an environment variable, and its name into {key}.key_variable",
    )
    require(bool(n.model), f"{key}.model", n.model, "name the model to ask for")
    for name in ("max_calls_total", "max_tokens_total", "temperature"):
        value = getattr(n, name)
        require(value >= 0, f"{key}.{name}", value, "must be at least 0")
    for name in ("step_tokens", "concurrency"):
        value = getattr(n, name)
        require(value >= 1, f"{key}.{name}", value, "must be at least 1")
    require(n.deadline_s > 0, f"{key}.deadline_s", n.deadline_s, "must be more than 0")

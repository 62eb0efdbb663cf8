"""Endpoints of a test: their settings, replies, and trajectories of several questions."""

from __future__ import annotations

from rapo_jax.buffer.conversations import converse
from rapo_jax.buffer.endpoint import Budget, Endpoint
from rapo_jax.config import EndpointSettings
from rapo_jax.tasks import Question
from rapo_jax.tools.observation import Observation

SEARCH = "<think>look</think><search>a b</search>"
ANSWER = "<think>so</think><answer>\\boxed{c}</answer>"
ASK = [{"role": "user", "content": "q"}]


def question(name):
    return Question(id=name, question=f"{name}?", answers=("c",), kind="k", source="test")


def chat(text, *, tokens=10, reason="stop", **more):
    choice = {"message": {"role": "assistant", "content": text} | more, "finish_reason": reason}
    return 200, {"choices": [choice], "usage": {"total_tokens": tokens}}


def settings(url, **changes):
    values = {
        "url": url, "model": "teacher", "key_variable": "", "temperature": 0.7, "step_tokens": 50,
        "extra_body": {},
        "max_calls_total": 0, "max_tokens_total": 0, "concurrency": 3, "deadline_s": 10.0,
    }  # fmt: skip
    return EndpointSettings(**(values | changes))


def make(url, folder, **changes):
    s = settings(url, **changes)
    budget = Budget(
        folder / "spent.jsonl", max_calls=s.max_calls_total, max_tokens=s.max_tokens_total
    )
    return Endpoint(s, budget, user_tools=(), backoff_s=0.01), budget


def echo(calls):
    return [Observation(f"saw {call}", "ok") for call in calls]


def sample(endpoint, names, *, concurrency=1):
    kept = {}
    outcome = converse(
        endpoint,
        [(question(name), 0) for name in names],
        {"search": echo},
        system="be good",
        max_calls=3,
        concurrency=concurrency,
        keep=lambda q, n, segments: kept.__setitem__(q.id, segments),
    )
    return kept, outcome


def searches_once(handler, body):
    return chat(SEARCH if len(body["messages"]) == 2 else ANSWER)

"""A chat endpoint as an agent: where its steps end, what it may spend, servers that misbehave."""

from __future__ import annotations

import time

import pytest

from rapo_jax.buffer.conversations import converse
from rapo_jax.buffer.endpoint import Budget, Endpoint, Spent, whole_step
from rapo_jax.config import EndpointSettings
from rapo_jax.io.http import HttpFailure
from rapo_jax.tasks import Question
from rapo_jax.tools.observation import Observation
from rapo_jax.types import Source

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


@pytest.mark.parametrize(
    ("text", "ended", "step"),
    [
        ("<search>a", True, "<search>a</search>"),
        ("<search>a", False, "<search>a"),  # it was cut off at its longest
        (SEARCH + "<result>made up</result>" + ANSWER, True, SEARCH),
        ("<think>a <search> helps</think>", True, "<think>a <search> helps</think>"),
        (ANSWER + "bye<|im_end|>", True, ANSWER),
        ("no tag <|im_end|>", True, "no tag < |im_end|>"),
    ],
)
def test_a_step_ends_with_its_first_closing_tag(text, ended, step):
    assert whole_step(text, ended=ended, user_tools=()) == step


def test_a_trajectory_is_a_conversation_through_the_real_tools(serve, tmp_path):
    requests = []

    def answer(handler, body):
        requests.append((handler.path, body))
        return searches_once(handler, body)

    endpoint, budget = make(serve(answer) + "/v1/", tmp_path)
    kept, outcome = sample(endpoint, ["q"])
    assert [(s.source, s.step, s.text) for s in kept["q"]] == [
        (Source.POLICY, 0, SEARCH),
        (Source.TOOL, 0, "<result> saw a b</result>"),
        (Source.POLICY, 1, ANSWER),
    ]
    assert (outcome.finished, outcome.failed, outcome.spent) == (1, 0, "")
    assert (budget.calls, budget.tokens) == (2, 20)
    path, body = requests[1]
    assert path == "/v1/chat/completions"
    assert body["messages"] == [
        {"role": "system", "content": "be good"},
        {"role": "user", "content": "q?"},
        {"role": "assistant", "content": SEARCH},
        {"role": "user", "content": "<result> saw a b</result>"},
    ]
    assert body["stop"] == ["</search>", "</python>", "</answer>"]
    assert (body["model"], body["temperature"], body["max_tokens"]) == ("teacher", 0.7, 50)


def test_a_thought_that_the_server_cut_out_comes_back_and_forges_no_call(serve, tmp_path):
    thought = "so </search> it is"
    url = serve(lambda h, body: chat("<answer>c", reasoning_content=thought))
    step = make(url, tmp_path)[0].step(ASK)
    assert step == "<think>so < /search> it is</think><answer>c</answer>"


def test_a_busy_or_broken_server_is_asked_again(serve, tmp_path):
    def broken(handler, body):
        handler.wfile.write(b'HTTP/1.0 200 OK\r\n\r\n{"choices": [')

    answers = [
        lambda h, b: (429, "busy"),
        broken,
        lambda h, b: (500, "oh"),
        lambda h, b: chat("hm"),
    ]
    endpoint, budget = make(serve(lambda h, b: answers.pop(0)(h, b)), tmp_path)
    assert endpoint.step(ASK) == "hm"
    assert (budget.calls, budget.tokens) == (1, 10)


@pytest.mark.parametrize("reply", [{}, {"choices": []}, {"choices": [{"message": None}]}, [], None])
def test_an_answer_without_a_message_is_a_failure_of_that_call(serve, tmp_path, reply):
    with pytest.raises(HttpFailure, match="the answer holds no message"):
        make(serve(lambda h, b: (200, reply)), tmp_path)[0].step(ASK)


@pytest.mark.parametrize("content", ["", " \n", None, ["x"]])
def test_an_empty_answer_is_asked_for_again_and_paid_for(serve, tmp_path, content):
    answers = [chat(content, tokens=7), chat(content, tokens=8), chat("hm")]
    endpoint, budget = make(serve(lambda h, b: answers.pop(0)), tmp_path)
    assert endpoint.step(ASK) == "hm"
    assert (budget.calls, budget.tokens) == (1, 25)

    answers += [chat(content, tokens=10)] * 4
    with pytest.raises(HttpFailure, match=r"the answer holds no message \(4 attempts\)"):
        endpoint.step(ASK)
    assert (budget.calls, budget.tokens, answers) == (2, 65, [])


def test_empty_answers_are_not_asked_for_beyond_the_cap(serve, tmp_path):
    asked = []
    url = serve(lambda h, b: asked.append(1) or chat("", tokens=40))
    with pytest.raises(Spent, match="max_tokens_total=100"):
        make(url, tmp_path, max_tokens_total=100)[0].step(ASK)
    assert len(asked) == 2


@pytest.mark.parametrize("claim", [10**12, 10**4000, -1, True, "many", 1e12])
def test_a_claim_of_tokens_is_bounded_by_what_was_sent_and_the_longest_answer(
    serve, tmp_path, claim
):
    endpoint, budget = make(serve(lambda h, b: chat("hm", tokens=claim)), tmp_path)
    endpoint.step(ASK)
    assert 0 <= budget.tokens <= len(str(ASK)) + 50


def test_a_slow_server_costs_a_trajectory_and_not_the_others(serve, tmp_path):
    def answer(handler, body):
        if body["messages"][1]["content"] == "slow?":
            time.sleep(1.0)
        return chat(ANSWER)

    endpoint, _ = make(serve(answer), tmp_path, deadline_s=0.5)
    kept, outcome = sample(endpoint, ["a", "slow", "b"])
    assert set(kept) == {"a", "b"} and (outcome.finished, outcome.failed) == (2, 1)
    assert "no answer in time" in outcome.problem


def test_a_refused_key_ends_the_sampling_and_is_never_printed(serve, tmp_path, capfd):
    key = "HOME"  # a variable that is always set
    requests = []

    def answer(handler, body):
        requests.append(handler.headers["Authorization"])
        return 401, f"bad key {requests[0]}"

    endpoint, _ = make(serve(answer), tmp_path, key_variable=key)
    with pytest.raises(
        ValueError, match="buffer.endpoint.model='teacher': .*status 401"
    ) as refused:
        sample(endpoint, ["a", "b"])
    secret = requests[0].removeprefix("Bearer ")
    assert secret and secret not in str(refused.value).replace(str(tmp_path), "")
    assert len(requests) == 1 and capfd.readouterr() == ("", "")
    with pytest.raises(ValueError, match="NO_SUCH_KEY.*empty or not set"):
        make("http://localhost", tmp_path, key_variable="NO_SUCH_KEY")


def test_a_server_that_always_fails_ends_the_sampling(serve, tmp_path):
    asked = []
    endpoint, _ = make(serve(lambda h, b: asked.append(1) or (400, "too long")), tmp_path)
    with pytest.raises(
        ValueError, match="10 trajectories in a row failed.*start again to continue"
    ):
        sample(endpoint, [f"q{i}" for i in range(40)])
    assert len(asked) == 10


def test_a_cap_on_calls_ends_the_asking_and_keeps_what_is_finished(serve, tmp_path):
    asked = []

    def answer(handler, body):
        asked.append(1)
        return searches_once(handler, body)

    url = serve(answer)
    endpoint, _ = make(url, tmp_path, max_calls_total=5)
    kept, outcome = sample(endpoint, ["a", "b", "c", "d"])
    assert list(kept) == ["a", "b"] and len(asked) == 5
    assert outcome.spent == "buffer.endpoint.max_calls_total=5: 5 are spent"
    again, _ = make(url, tmp_path, max_calls_total=5)  # another build has the same account
    assert sample(again, ["c"])[1].spent and len(asked) == 5


def test_a_cap_on_tokens_holds_an_estimate_apart_before_each_call(tmp_path):
    budget = Budget(tmp_path / "spent.jsonl", max_calls=0, max_tokens=100)
    budget.take(60)
    with pytest.raises(Spent, match="max_tokens_total=100: 60 are spent"):
        budget.take(60)
    budget.correct(-50)
    budget.take(60)
    again = Budget(tmp_path / "spent.jsonl", max_calls=0, max_tokens=100)
    assert (again.calls, again.tokens) == (2, 70)
    (tmp_path / "spent.jsonl").write_text("x\n")
    with pytest.raises(ValueError, match="spent.jsonl: damaged"):
        Budget(tmp_path / "spent.jsonl", max_calls=0, max_tokens=100)

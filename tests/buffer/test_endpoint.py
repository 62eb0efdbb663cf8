"""A chat endpoint as an agent: where its steps end, and servers that misbehave."""

from __future__ import annotations

import time

import pytest

from rapo_jax.buffer.endpoint import whole_step, whole_steps
from rapo_jax.io.http import HttpFailure
from rapo_jax.types import Source
from tests.buffer.chats import ANSWER, ASK, SEARCH, chat, make, sample, searches_once


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


@pytest.mark.parametrize(
    ("rest", "more"),
    [
        ("\n<python>1</python>\n<search>c", ["<python>1</python>", "<search>c</search>"]),
        ("<result>made up</result><python>1</python>", []),
        (ANSWER, []),
    ],
)
def test_calls_behind_a_call_in_one_message_are_steps_and_anything_else_is_cut(rest, more):
    assert whole_steps(SEARCH + rest, ended=True, user_tools=()) == [SEARCH, *more]


@pytest.mark.parametrize(
    ("text", "ended", "step"),
    [
        ("hm</think><search>a", True, "<think>hm</think><search>a</search>"),
        ("hm</think>\n42", True, "<think>hm</think><answer>\\boxed{42}</answer>"),
        ("<think>hm</think>\n42", True, "<think>hm</think><answer>\\boxed{42}</answer>"),
        ("<think>hm</think>\n42", False, "<think>hm</think>\n42"),
        ("<think>hm</think>", True, "<think>hm</think>"),
    ],
)
def test_a_thought_is_opened_and_plain_text_behind_one_is_the_answer(text, ended, step):
    assert whole_steps(text, ended=ended, user_tools=()) == [step]


def test_two_calls_of_one_message_are_done_in_turn_and_asked_for_once(serve, tmp_path):
    asked = []

    def answer(handler, body):
        asked.append([message["content"] for message in body["messages"][2:]])
        return chat(SEARCH + "<search>c</search>" if len(asked) == 1 else ANSWER)

    kept, _ = sample(make(serve(answer), tmp_path)[0], ["q"])
    first, second = (
        (SEARCH, "<result> saw a b</result>"),
        ("<search>c</search>", "<result> saw c</result>"),
    )
    assert [s.text for s in kept["q"]] == [*first, *second, ANSWER]
    assert asked == [[], [*first, *second]]


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
    (step,) = make(url, tmp_path)[0].steps(ASK)
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
    assert endpoint.steps(ASK) == ["hm"]
    assert (budget.calls, budget.tokens) == (1, 10)


@pytest.mark.parametrize("status", [520, 524, 529])
@pytest.mark.parametrize("inside", [False, True], ids=["status", "inside status 200"])
def test_a_passing_failure_is_tried_again_and_its_reason_is_reported(
    serve, tmp_path, status, inside
):
    error = {"error": {"message": "the model is overloaded", "code": status}}
    answers = [(200, error) if inside else (status, "the model is overloaded")] * 3 + [chat("hm")]
    endpoint, budget = make(serve(lambda h, b: answers.pop(0)), tmp_path)
    assert endpoint.steps(ASK) == ["hm"]
    assert (budget.calls, budget.tokens) == (1, 10)
    answers += [(200, {"choices": [error]}) if inside else (status, error)] * 4
    with pytest.raises(HttpFailure, match=rf"overloaded.*{status}" if inside else "overloaded"):
        endpoint.steps(ASK)
    assert (budget.calls, budget.tokens) == (2, 10)


def test_a_refused_key_may_be_reported_inside_status_200(serve, tmp_path):
    url = serve(lambda h, b: (200, {"object": "error", "message": "bad key", "code": 401}))
    with pytest.raises(ValueError, match="endpoint.model='teacher': .*bad key"):
        make(url, tmp_path)[0].steps(ASK)


@pytest.mark.parametrize(
    ("content", "step"),
    [
        ([{"type": "text", "text": "<answer>"}, {"type": "text", "text": "c"}],
         "<answer>c</answer>"),
        ([{"type": "thinking", "thinking": [{"type": "text", "text": "so"}]}, "hm"],
         "<think>so</think><answer>\\boxed{hm}</answer>"),
    ],
)  # fmt: skip
def test_a_content_may_be_a_list_of_parts(serve, tmp_path, content, step):
    assert make(serve(lambda h, b: chat(content)), tmp_path)[0].steps(ASK) == [step]


def test_a_message_of_function_calls_is_refused_by_name(serve, tmp_path):
    calls = [{"function": {"name": "search"}}, {"function": {"name": "python"}}]
    url = serve(lambda h, b: chat(None, tool_calls=calls))
    with pytest.raises(HttpFailure, match=r"calls of functions \(search, python\)"):
        make(url, tmp_path)[0].steps(ASK)


def test_extra_fields_replace_or_remove_those_of_a_request(serve, tmp_path):
    sent = []
    extra = {"max_completion_tokens": 9, "temperature": None, "top_k": 3, "stop": ["x"]}
    url = serve(lambda h, body: sent.append(body) or chat("hm"))
    make(url, tmp_path, extra_body=extra)[0].steps(ASK)
    assert sent == [
        {"model": "teacher", "messages": ASK, "max_completion_tokens": 9, "top_k": 3, "stop": ["x"]}
    ]


@pytest.mark.parametrize(
    "reply",
    [{}, {"choices": []}, {"choices": None}, {"choices": [None]}, {"choices": [{"message": None}]},
     [], None],
)  # fmt: skip
def test_an_answer_without_a_message_is_a_failure_of_that_call(serve, tmp_path, reply):
    with pytest.raises(HttpFailure, match="the answer holds no message"):
        make(serve(lambda h, b: (200, reply)), tmp_path)[0].steps(ASK)


@pytest.mark.parametrize("content", ["", " \n", None, [], [{"type": "image_url"}]])
def test_an_empty_answer_is_asked_for_again_and_paid_for(serve, tmp_path, content):
    answers = [chat(content, tokens=7), chat(content, tokens=8), chat("hm")]
    endpoint, budget = make(serve(lambda h, b: answers.pop(0)), tmp_path)
    assert endpoint.steps(ASK) == ["hm"]
    assert (budget.calls, budget.tokens) == (1, 25)

    answers += [chat(content, tokens=10)] * 4
    with pytest.raises(HttpFailure, match=r"the answer holds no message \(4 attempts\)"):
        endpoint.steps(ASK)
    assert (budget.calls, budget.tokens, answers) == (2, 65, [])


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


def fails_often(body):
    """Answers each tenth question."""
    return chat(ANSWER) if "9?" in str(body) else (400, "too long")


def test_failures_with_a_success_between_them_are_not_in_a_row(serve, tmp_path):
    endpoint, _ = make(serve(lambda h, b: fails_often(b)), tmp_path)
    _, outcome = sample(endpoint, [f"q{i}" for i in range(30)])
    assert (outcome.finished, outcome.failed) == (3, 27)


def test_a_server_that_always_fails_ends_the_sampling(serve, tmp_path):
    asked = []
    endpoint, _ = make(serve(lambda h, b: asked.append(1) or (400, "too long")), tmp_path)
    with pytest.raises(
        ValueError, match="10 trajectories in a row failed.*start again to continue"
    ):
        sample(endpoint, [f"q{i}" for i in range(40)])
    assert len(asked) == 10

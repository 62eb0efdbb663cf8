"""User tools: text in, text out; whatever the function does, there is an observation."""

from __future__ import annotations

import asyncio
import re
import threading
import time

import pytest

from rapo_jax.config import ToolsSettings
from rapo_jax.tools import make_tools
from rapo_jax.tools.user import MAX_ERROR_CHARS, MAX_THREADS, UserTool, load_user_tools
from tests import user_code


def tool(function, *, timeout_s=30.0, output_chars=100):
    return UserTool("mine", function, timeout_s=timeout_s, output_chars=output_chars)


def test_each_call_is_answered_in_its_place():
    texts = [str(n) for n in range(200)]
    assert tool(user_code.shout)(texts) == [(f"{n}!", "ok") for n in range(200)]
    assert tool(user_code.shout)([]) == []


def test_calls_of_a_batch_run_at_the_same_time():
    meeting = threading.Barrier(8, timeout=30)  # breaks unless eight calls come together

    def meet(text):
        meeting.wait()
        return text

    assert [outcome for _, outcome in tool(meet)(["x"] * 8)] == ["ok"] * 8


def test_an_exception_is_an_error_of_one_short_line_without_folders_of_the_machine():
    def fail(text):
        raise OSError(
            f"cannot read '/home/ann b/secret/{text}' nor /etc/x/y.txt,\nat a/b http://h/p"
        )

    (found,) = tool(fail)(["t.txt"])
    assert found.outcome == "error"
    assert found.text == "error: OSError: cannot read 't.txt' nor y.txt, at a/b http://h/p"


@pytest.mark.parametrize("error", [SystemExit(3), KeyboardInterrupt(), GeneratorExit("x")])
def test_an_exception_that_would_end_a_process_is_an_error_too(error):
    def fail(text):
        raise error

    (found,) = tool(fail)(["x"])
    assert found.outcome == "error" and found.text.startswith(f"error: {type(error).__name__}")


def test_an_error_whose_text_cannot_be_made_is_named_by_its_type():
    class Shy(Exception):
        def __str__(self):
            raise RuntimeError

    def fail(text):
        raise Shy

    assert tool(fail)(["x"]) == [("error: Shy", "error")]


def test_a_long_error_is_cut():
    def fail(text):
        raise ValueError("x" * 10**6)

    (found,) = tool(fail)(["x"])
    assert len(found.text) < MAX_ERROR_CHARS + 20


@pytest.mark.parametrize("given", [None, 3, b"bytes", ["a"]])
def test_a_function_that_returns_no_text_is_an_error_that_names_the_type(given):
    (found,) = tool(lambda text: given)(["x"])
    message = f"error: TypeError: mine gave back no text but {type(given).__name__}"
    assert found == (message, "error")


def test_long_output_is_cut_and_half_characters_are_replaced():
    assert tool(lambda text: "y" * 101)(["x"]) == [("y" * 100 + " ...", "flooded")]
    assert tool(lambda text: "a\ud800b")(["x"]) == [("a?b", "ok")]


def test_a_late_call_hides_the_traceback_of_no_exception_after_it(caplog):
    free = threading.Event()

    def fails(text):
        return free.wait() if text == "hang" else {}[text]

    failing = tool(fails, timeout_s=0.3)
    assert failing(["hang"]) == [("error: mine timed out", "timeout")]
    failing(["key"])
    free.set()
    late, failed = caplog.records
    assert "took longer" in late.getMessage() and not late.exc_info
    assert failed.exc_info and failed.exc_info[0] is KeyError


def test_a_call_that_hangs_is_a_timeout_and_delays_no_other():
    free = threading.Event()

    def hang(text):
        if text == "hang":
            free.wait()
        return text

    found = tool(hang, timeout_s=0.3)(["a", "hang", "b"])
    assert found == [("a", "ok"), ("error: mine timed out", "timeout"), ("b", "ok")]
    free.set()


def test_where_all_threads_hang_calls_time_out_until_they_end():
    free = threading.Event()
    ended = threading.Semaphore(0)

    def hang(text):
        if text == "hang":
            free.wait()
            ended.release()
        return text

    mine = tool(hang, timeout_s=0.05)
    started = time.monotonic()
    found = mine(["hang"] * MAX_THREADS + ["a"] * 1000)
    assert time.monotonic() - started < 1000 * 0.05 / 2  # they wait for a slot together
    assert {outcome for _, outcome in found} == {"timeout"}
    assert mine(["a"])[0].outcome == "timeout"
    free.set()
    for _ in range(MAX_THREADS):
        assert ended.acquire(timeout=30)
    assert any(mine(["a"]) == [("a", "ok")] for _ in range(600))  # slots are free a moment later


def test_calls_of_an_async_function_run_together_in_one_event_loop():
    running, loops = [], set()

    async def meet(text):
        running.append(text)
        loops.add(asyncio.get_running_loop())
        while len(running) < 8:
            await asyncio.sleep(0.001)
        return text.upper()

    assert tool(meet)(list("abcdefgh")) == [(letter, "ok") for letter in "ABCDEFGH"]
    assert tool(meet)(["x"]) == [("X", "ok")] and len(loops) == 1


@pytest.mark.parametrize("error", [OSError("no luck"), SystemExit(3), KeyboardInterrupt()])
def test_an_exception_of_an_async_function_is_an_error_and_the_loop_runs_on(error):
    async def fail(text):
        if text == "bad":
            raise error
        return text

    bad, good = tool(fail)(["bad", "good"])
    assert bad.outcome == "error" and type(error).__name__ in bad.text
    assert good == ("good", "ok")


def test_an_async_call_that_takes_too_long_is_cancelled():
    cancelled = threading.Event()

    async def hang(text):
        try:
            await asyncio.sleep(1000)
        except asyncio.CancelledError:
            cancelled.set()
            raise

    assert tool(hang, timeout_s=0.05)(["x"])[0].outcome == "timeout"
    assert cancelled.wait(10)


def test_the_purpose_of_a_tool_is_the_first_line_of_its_docstring():
    assert tool(user_code.shout).purpose == "Says it louder."
    assert tool(user_code.broken).purpose == ""


def make(*named):
    return load_user_tools(ToolsSettings(user_tools=named))


def test_tools_are_made_from_pairs_of_a_tag_and_a_path():
    made = make(("shout", "tests.user_code:shout"), ("python", "tests.user_code:broken"))
    assert list(made) == ["shout", "python"]
    assert make(("echo", "tests.user_code:later"))["echo"](["a"]) == [("a", "ok")]
    assert made["shout"](["a"]) == [("A!", "ok")]
    assert made["python"](["a"]) == [("error: KeyError: 'a'", "error")]


@pytest.mark.parametrize(
    ("pair", "message"),
    [
        (
            ("think", "m:f"),
            "tools.user_tools=('think', 'm:f'): <think> is another tag of the protocol; ",
        ),
        (
            ("answer", "m:f"),
            "tools.user_tools=('answer', 'm:f'): <answer> is another tag of the protocol",
        ),
        (
            ("Loud", "m:f"),
            "tools.user_tools=('Loud', 'm:f'): 'Loud' cannot be a tag; write small letters",
        ),
        (("a b", "m:f"), "tools.user_tools=('a b', 'm:f'): 'a b' cannot be a tag"),
        (("", "m:f"), "tools.user_tools=('', 'm:f'): '' cannot be a tag"),
        (
            ("errors", "m:f"),
            "tools.user_tools=('errors', 'm:f'): a metric or a count has the name errors",
        ),
        (("waited", "m:f"), "('waited', 'm:f'): a metric or a count has the name waited"),
        (("condensed", "m:f"), "('condensed', 'm:f'): a metric or a count has the name cond"),
        (("invalid", "m:f"), "('invalid', 'm:f'): the rollout uses the name invalid; choose"),
        (
            ("stop", "m:f"),
            "tools.user_tools=('stop', 'm:f'): the rollout uses the name stop; choose",
        ),
        (
            ("loud",),
            "tools.user_tools=('loud',): write pairs, (('calculator', 'my_tools:calculate'),)",
        ),
        (("loud", "no_such_code:f"), "tools.user_tools.loud='no_such_code:f': there is no module"),
        (
            ("loud", "tests.user_code:NOT_CALLABLE"),
            "tools.user_tools.loud='tests.user_code:NOT_CALLABLE': must be a fu",
        ),
    ],
)
def test_a_bad_pair_of_name_and_path_is_refused(pair, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        make(("shout", "tests.user_code:shout"), pair)


def test_two_tools_of_one_name_are_refused():
    with pytest.raises(ValueError, match="there are two tools 'loud'; rename one"):
        make(("loud", "tests.user_code:shout"), ("loud", "tests.user_code:broken"))


def test_user_tools_named_search_and_python_replace_the_built_in_ones():
    user_tools = make(*((name, "tests.user_code:shout") for name in ("python", "loud", "search")))
    tools = make_tools(
        ToolsSettings(workers=0),  # a sandbox would refuse this
        documents=[],  # and a local search this
        encode=lambda texts: None,
        user_tools=user_tools,
    )
    assert list(tools) == ["search", "python", "loud"]
    assert all(tools[name] is user_tools[name] for name in user_tools)

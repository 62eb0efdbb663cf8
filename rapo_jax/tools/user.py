"""User tools: a user's functions, text in, text out, as tools of the agent (tools.user_tools)."""

from __future__ import annotations

import inspect
import queue
import re
import threading
import time
from collections.abc import Callable, Coroutine, Mapping

from rapo_jax.config import ToolsSettings
from rapo_jax.io.user_code import load_function
from rapo_jax.text.protocol import CALLS, INVALID, TAG_NAMES
from rapo_jax.tools.event_loop import run_async
from rapo_jax.tools.failures import FailureLog
from rapo_jax.tools.observation import Observation

MAX_THREADS = 64
"""Calls of one tool at a time, including those that hang."""
MAX_ERROR_CHARS = 200
LATER_S = 0.5
"""An async call is cancelled so long after its observation is a timeout."""
_NAME = re.compile(r"[a-z][a-z0-9_]*")
_TAKEN = {
    **{tag: f"<{tag}> is another tag of the protocol" for tag in TAG_NAMES if tag not in CALLS},
    **{
        name: f"a metric or a count has the name {name}"
        for name in ("errors", "timeouts", "seconds", "waited", "condensed")
    },
    **{name: f"the rollout uses the name {name}" for name in ("stop", INVALID)},
}
_QUOTED_PATH = re.compile(r"""(['"])~?/(?:[^'"/]+/)+([^'"/]*)\1""")
_BARE_PATH = re.compile(r"""(?<![\w/])~?/(?:[^\s'"/]+/)+([^\s'"/]*)""")

Results = queue.SimpleQueue[tuple[int, Observation]]
"""(place of the call in its batch, its observation), in the order in which calls end."""


def load_user_tools(settings: ToolsSettings) -> dict[str, UserTool]:
    """The tools of tools.user_tools, pairs of a tag's name and 'module:function', by name.

    Raises:
        ValueError: a name cannot be a tag or is taken, or a function cannot be loaded.
    """
    tools: dict[str, UserTool] = {}
    for pair in settings.user_tools:
        where = f"tools.user_tools={tuple(pair)!r}"
        if len(pair) != 2:
            raise ValueError(f"{where}: write pairs, (('calculator', 'my_tools:calculate'),)")
        name, path = pair
        check_tag(name, tools, where=where)
        function = load_function(
            path, key=f"tools.user_tools.{name}", takes=("text",), may_be_async=True
        )
        tools[name] = UserTool(
            name, function, timeout_s=settings.timeout_s, output_chars=settings.output_chars
        )
    return tools


def check_tag(name: str, tools: Mapping[str, UserTool], *, where: str) -> None:
    """Raises ValueError if `name` cannot be the tag of another tool beside `tools`."""
    if not _NAME.fullmatch(name):
        raise ValueError(f"{where}: {name!r} cannot be a tag; write small letters, as 'calculator'")
    if name in _TAKEN:
        raise ValueError(f"{where}: {_TAKEN[name]}; choose another name")
    if name in tools:
        raise ValueError(f"{where}: there are two tools {name!r}; rename one")


class UserTool:
    """A Tool over a function that maps a text to a text.

    The function is trusted code: it runs in the trainer's process, in several threads at once, and
    nothing confines it (it must not use jax, which waits for the rollout that waits for the tool).
    An exception is an observation with the outcome error, and is logged with its traceback. After
    `timeout_s` a call is a timeout; its thread cannot be ended from outside, so it stays occupied,
    and once MAX_THREADS hang, further calls are timeouts too. An async function runs in the event
    loop of `event_loop.py` and is cancelled after `timeout_s`.
    """

    def __init__(
        self,
        name: str,
        function: Callable[[str], str | Coroutine[object, object, str]],
        *,
        timeout_s: float,
        output_chars: int,
        key: str = "tools.user_tools",
        timeout_key: str = "tools.timeout_s",
        close: Callable[[], None] = lambda: None,
    ) -> None:
        self._name, self._function = name, function
        self._timeout_key, self.close = timeout_key, close
        self._timeout_s, self._output_chars = timeout_s, output_chars
        self._slots = threading.Semaphore(MAX_THREADS)
        self._log_failure = FailureLog(f"{key}.{name}")
        self._log_late = FailureLog(f"{key}.{name}")

    @property
    def purpose(self) -> str:
        """The first line of the function's docstring, for the system prompt; '' without one."""
        text = inspect.getdoc(self._function) if inspect.isroutine(self._function) else None
        return (text or "").strip().partition("\n")[0]

    def __call__(self, calls: list[str]) -> list[Observation]:
        observations = [Observation(f"error: {self._name} timed out", "timeout")] * len(calls)
        answers: Results = queue.SimpleQueue()
        deadlines: dict[int, float] = {}  # of calls that run, the earliest first
        wait_s = self._timeout_s
        for i, text in enumerate(calls):
            if not self._slots.acquire(timeout=wait_s):
                wait_s = 0.0  # the calls behind it have waited as long
                continue
            deadlines[i] = time.monotonic() + self._timeout_s
            self._start(i, text, answers)
        while deadlines:
            first = next(iter(deadlines))
            try:
                i, observation = answers.get(timeout=max(deadlines[first] - time.monotonic(), 0.0))
            except queue.Empty:
                del deadlines[first]
                continue
            if deadlines.pop(i, None) is not None:
                observations[i] = observation
        late = sum(observation.outcome == "timeout" for observation in observations)
        if late:
            limit = f"{self._timeout_key}={self._timeout_s:g}"
            self._log_late(f"{late} calls took longer than {limit}")
        return observations

    def _start(self, i: int, text: str, answers: Results) -> None:
        name = f"user_tool_{self._name}"
        thread = threading.Thread(target=self._run, args=(i, text, answers), name=name, daemon=True)
        try:
            thread.start()
        except RuntimeError as error:  # the machine has no more threads
            self._slots.release()
            answers.put((i, self._failed(error)))

    def _run(self, i: int, text: str, answers: Results) -> None:
        try:
            answer = self._function(text)
            if isinstance(answer, Coroutine):
                answer = run_async(answer, self._timeout_s + LATER_S)
            observation = self._observation(answer)
        except BaseException as error:  # SystemExit too: a tool never raises, see Tool
            observation = self._failed(error)
        self._slots.release()
        answers.put((i, observation))

    def _observation(self, text: str) -> Observation:
        if not isinstance(text, str):
            raise TypeError(f"{self._name} gave back no text but {type(text).__name__}")
        cut = text[: self._output_chars].encode("utf-8", "replace").decode("utf-8")
        if len(text) > self._output_chars:
            return Observation(cut + " ...", "flooded")
        return Observation(cut, "ok")

    def _failed(self, error: BaseException) -> Observation:
        text = _short(error)
        self._log_failure(text, error)
        return Observation(f"error: {text}", "error")


def _short(error: BaseException) -> str:
    """An error for the model: one short line, without the folders of this machine."""
    try:
        text = f"{type(error).__name__}: {error}".rstrip(": ")
    except Exception:  # its __str__ may raise
        text = type(error).__name__
    text = " ".join(text[: 4 * MAX_ERROR_CHARS].split())
    text = _BARE_PATH.sub(r"\1", _QUOTED_PATH.sub(r"\1\2\1", text))
    text = text.encode("utf-8", "replace").decode("utf-8")
    return text if len(text) <= MAX_ERROR_CHARS else text[:MAX_ERROR_CHARS] + " ..."

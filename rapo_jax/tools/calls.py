"""Runs the tool calls of a rollout's rows in threads; a row has one step of calls at a time."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from concurrent.futures import ALL_COMPLETED, FIRST_COMPLETED, Future, ThreadPoolExecutor, wait

from rapo_jax.text.protocol import INVALID, Step
from rapo_jax.text.protocols import Protocol
from rapo_jax.tools.observation import Observation, Tool

Called = tuple[Step, Observation]
"""A call and what its tool observed."""

THREADS = 128
"""Calls of tools at a time, those that wait for a service included."""


class RunningCalls:
    """Calls of tools by row. `max_calls`: how many of a row are made; others get an error."""

    def __init__(self, tools: Mapping[str, Tool], protocol: Protocol, *, max_calls: int) -> None:
        self._tools, self._protocol, self._max_calls = tools, protocol, max_calls
        self._pool = ThreadPoolExecutor(THREADS, thread_name_prefix="tools")
        self.begin()

    def begin(self) -> None:
        """Forgets all rows."""
        self._running: dict[int, list[Future[Called]]] = {}
        self._made: dict[int, list[list[Step]]] = defaultdict(list)  # by step

    def fork(self, row: int, parent: int, *, steps: int) -> None:
        """Copies the calls of the parent's first `steps` steps to the row."""
        self._made[row] = [list(made) for made in self._made[parent][:steps]]

    def start(self, steps: Sequence[tuple[int, str]]) -> None:
        """Hands the calls in the texts of these rows' steps to the tools."""
        protocol = self._protocol
        calls: dict[str, list[tuple[Future[Called], Step]]] = {}
        for row, text in steps:
            parsed, earlier = protocol.parse(text), sum(self._made[row], [])
            made: list[Step] = []
            self._made[row].append(made)
            self._running[row] = []
            for step in [parsed] if isinstance(parsed, Step) else parsed:
                call: Future[Called] = Future()
                self._running[row].append(call)
                if step.kind == INVALID:
                    call.set_result((step, Observation(protocol.corrective, "error")))
                    made.append(step)
                elif len(earlier) + len(made) >= self._max_calls:
                    call.set_result((step, Observation(protocol.no_calls_left, "error")))
                elif protocol.repeated and step in earlier + made:
                    call.set_result((step, Observation(protocol.repeated, "error")))
                else:
                    made.append(step)
                    calls.setdefault(step.kind, []).append((call, step))
        for name, callers in calls.items():
            tool = self._tools[name]
            if getattr(tool, "immediate", False):
                observations = tool([step.content for _, step in callers])
                for (call, step), observation in zip(callers, observations, strict=True):
                    call.set_result((step, observation))
                continue
            for call, step in callers:
                self._pool.submit(_call_once, call, step, tool)

    def done(self, row: int) -> bool:
        """Whether all calls of the row's step have their observations."""
        return all(call.done() for call in self._running[row])

    def take(self, row: int) -> list[Called]:
        """The calls of the row's step, in their order; raises what a tool raised."""
        return [call.result() for call in self._running.pop(row)]

    def wait(self, rows: Sequence[int], *, for_all: bool = False) -> None:
        """Waits until one of these rows, or all of them, are done."""
        when = ALL_COMPLETED if for_all else FIRST_COMPLETED
        while not (all if for_all else any)(map(self.done, rows)):
            calls = [call for row in rows for call in self._running[row] if not call.done()]
            wait(calls, return_when=when)


def _call_once(call: Future[Called], step: Step, tool: Tool) -> None:
    try:
        (observation,) = tool([step.content])
    except BaseException as error:  # of any kind: it is raised where the result is read
        call.set_exception(error)
    else:
        call.set_result((step, observation))

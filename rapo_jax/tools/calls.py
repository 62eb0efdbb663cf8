"""Runs the tool calls of a rollout's rows in threads; a row has one step of calls at a time."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ALL_COMPLETED, FIRST_COMPLETED, Future, ThreadPoolExecutor, wait

from rapo_jax.text.protocol import CALL_NOTHING, INVALID, Step
from rapo_jax.text.protocols import Protocol
from rapo_jax.tools.observation import Observation, Tool

Called = tuple[Step, Observation]
"""A call and what its tool observed."""

Running = Called | Future[Called]
"""A call whose observation is there already, or a call in a thread."""

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
        self._running: dict[int, list[Running]] = {}
        self._made: dict[int, list[list[Step]]] = defaultdict(list)  # by step

    def fork(self, row: int, parent: int, *, steps: int) -> None:
        """Copies the calls of the parent's first `steps` steps to the row."""
        self._made[row] = [list(made) for made in self._made[parent][:steps]]

    def start(self, steps: Sequence[tuple[int, str]]) -> None:
        """Hands the calls in the texts of these rows' steps to the tools."""
        calls: dict[str, list[tuple[list[Running], int, Step]]] = {}
        for row, text in steps:
            running: list[Running] = []
            self._running[row] = running
            for place, (step, refusal) in enumerate(self._read(row, text)):
                # a call that is made gets its observation, or its thread, below
                running.append((step, Observation(refusal or "", "error")))
                if refusal is None:
                    calls.setdefault(step.kind, []).append((running, place, step))
        for name, callers in calls.items():
            tool = self._tools[name]
            if getattr(tool, "immediate", False):
                observations = tool([step.content for _, _, step in callers])
                for (running, place, step), observation in zip(callers, observations, strict=True):
                    running[place] = (step, observation)
                continue
            for running, place, step in callers:
                running[place] = self._pool.submit(_call_once, step, tool)

    def _read(self, row: int, text: str) -> Iterator[tuple[Step, str | None]]:
        """The calls in a step's text, each with the error that is returned instead of making it."""
        protocol = self._protocol
        parsed, earlier = protocol.parse(text), sum(self._made[row], [])
        made: list[Step] = []
        self._made[row].append(made)
        for step in [parsed] if isinstance(parsed, Step) else parsed:
            if step.kind in CALL_NOTHING:
                continue
            if step.kind not in self._tools:  # a user's `parse` may give a policy's own names
                step = Step(INVALID, step.content)
            refusal = None
            if step.kind == INVALID:
                refusal = protocol.corrective
            elif len(earlier) + len(made) >= self._max_calls:
                refusal = protocol.no_calls_left
            elif protocol.repeated and step in earlier + made:
                refusal = protocol.repeated
            if refusal is None or step.kind == INVALID:
                made.append(step)
            yield step, refusal

    def done(self, row: int) -> bool:
        """Whether all calls of the row's step have their observations."""
        return not self._waiting(row)

    def take(self, row: int) -> list[Called]:
        """The calls of the row's step, in their order; raises what a tool raised."""
        return [
            call.result() if isinstance(call, Future) else call for call in self._running.pop(row)
        ]

    def wait(self, rows: Sequence[int], *, for_all: bool = False) -> None:
        """Waits until one of these rows, or all of them, are done."""
        when = ALL_COMPLETED if for_all else FIRST_COMPLETED
        while not (all if for_all else any)(map(self.done, rows)):
            wait([call for row in rows for call in self._waiting(row)], return_when=when)

    def _waiting(self, row: int) -> list[Future[Called]]:
        """The calls of the row's step whose tools have not answered."""
        calls = self._running[row]
        return [call for call in calls if isinstance(call, Future) and not call.done()]


def _call_once(step: Step, tool: Tool) -> Called:
    (observation,) = tool([step.content])
    return step, observation

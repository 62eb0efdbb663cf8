"""The worker's side of benchmarks/peers.py: a framework in a process and environment of its own.

The first argument is the workload as JSON. Each line on stdin asks for one call, each line on
stdout is an answer in JSON: first the versions, then the call's seconds and tokens, or the error
that ends the process. Only the standard library is imported here.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import queue
import sys
import threading
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple


class Workload(NamedTuple):
    """Sizes of a call and the files it reads."""

    kind: str
    """decode: greedy tokens for each prompt; grpo: a whole step on `group` rollouts of each."""
    folder: str
    """Hugging Face folder of the model, with a tokenizer in FOLDER/tokenizer."""
    questions: Sequence[str]
    """Texts of the prompts; rapo_jax's chat template and tokenizer make `prompts` of them."""
    prompts: Sequence[Sequence[int]]
    """Token ids, as many for each prompt."""
    new_tokens: int
    group: int = 1

    @property
    def rows(self) -> int:
        return len(self.prompts) * self.group


Call = Callable[[], Sequence[Sequence[int]]]
"""Makes the sampled tokens of all rows."""


def even_share(tokens: Sequence[int]) -> float:
    """The reward of the GRPO step."""
    return sum(int(token) % 2 == 0 for token in tokens) / max(len(tokens), 1)


class StepGate(threading.Thread):
    """Runs a training loop in a thread of its own, one step for each call of `step`.

    The loop calls `pause` with the tokens of its step at the end of each.
    """

    def __init__(self, train: Callable[[], object]) -> None:
        super().__init__(daemon=True)
        self._train = train
        self._asked: queue.Queue[None] = queue.Queue()
        self._done: queue.Queue[Sequence[Sequence[int]] | BaseException] = queue.Queue()
        self.start()

    def run(self) -> None:
        self._asked.get()
        try:
            self._train()
            raise RuntimeError("the training loop ended by itself")
        except BaseException as error:
            self._done.put(error)

    def pause(self, tokens: Sequence[Sequence[int]]) -> None:
        self._done.put(tokens)
        self._asked.get()

    def step(self) -> Sequence[Sequence[int]]:
        self._asked.put(None)
        done = self._done.get()
        if isinstance(done, BaseException):
            raise done
        return done


def serve(loaders: Mapping[str, Callable[[Workload], Call]], packages: Sequence[str]) -> None:
    """Loads the workload of the command line, then answers until stdin ends."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print goes to stderr

    def answer(**values: object) -> None:
        print(json.dumps(values), file=answers, flush=True)

    try:
        workload = Workload(**json.loads(sys.argv[1]))
        call = loaders[workload.kind](workload)
        answer(versions={name: importlib.metadata.version(name) for name in packages})
        for _ in sys.stdin:
            wall, cpu = time.perf_counter(), time.process_time()
            rows = call()
            cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
            tokens = [[int(token) for token in row] for row in rows]
            answer(cpu_seconds=cpu, wall_seconds=wall, tokens=tokens)
    except BaseException as error:
        traceback.print_exc()
        answer(error=f"{type(error).__name__}: {error}")
    os._exit(0)  # threads of a training loop wait for the next step, and would be waited for

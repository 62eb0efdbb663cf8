"""Samples trajectories of a policy: the rollout, compiled once for each of its two uses."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from rapo_jax.config import ModelSettings, RolloutSettings
from rapo_jax.environment import Environment
from rapo_jax.model.attention import kernel_of
from rapo_jax.model.decoding import sampling_copy
from rapo_jax.model.lora import ADAPTERS, merged
from rapo_jax.model.sharding import (
    layout,
    on_mesh,
    place,
    place_local_rows,
    replicated,
    row_shards,
    rows,
)
from rapo_jax.rollout.bridge import host_call
from rapo_jax.rollout.loop import (
    HostCallbacks,
    RolloutInputs,
    call_directly,
    loop_steps,
    parts,
    rollout,
    scan_steps,
)
from rapo_jax.rollout.spans import Boundary
from rapo_jax.tasks.schema import Question
from rapo_jax.text.protocol import stops
from rapo_jax.text.tokens import Tokens, boundary_automaton
from rapo_jax.train.distributed import allgather_json
from rapo_jax.types import Params, Span, Trajectory

FOREVER = 2**30


class Sampler:
    """Samples trajectories for questions; holds the compiled programs and the environment.

    `embed` turns the environment's queries, `query_E` each, into keys on the device.
    """

    def __init__(
        self,
        model: ModelSettings,
        settings: RolloutSettings,
        tokens: Tokens,
        environment: Environment,
        mesh: Mesh,
        *,
        system: str,
        embed: Callable[[jax.Array], jax.Array],
        query_E: jax.ShapeDtypeStruct,
    ) -> None:
        self._model, self._settings, self._mesh = model, settings, mesh
        self._tokens, self._environment, self._system = tokens, environment, system
        ends = stops(tokens.user_tools)
        automaton = boundary_automaton(tokens.bytes_V, ends)
        self._parts = parts(
            model,
            settings,
            Boundary(
                jnp.asarray(automaton.next_state_AV),
                automaton.first_accept,
                ends.index("</answer>"),
                jnp.asarray(tokens.eos_ids, jnp.int32),
            ),
            embed,
        )
        self._query_E = query_E
        self._first_row = 0
        self._callbacks = HostCallbacks(self._act, self._query, self._search, query_E)
        self._loaders: dict[bool, Callable[[Params], Params]] = {}
        # Kernels are cut over the mesh by hand; the compiler places all else.
        self._kernel_mesh = mesh if kernel_of(model) else None
        self._everywhere = jax.jit(lambda tape: tape, out_shardings=replicated(mesh))
        self._programs: dict[tuple[bool, int], Callable[..., Trajectory]] = {}
        self.compiled = 0

    def load(self, params: Params) -> Params:
        """Weights in the training layout -> those that `sample` takes: once for each phase."""
        adapted = ADAPTERS in params
        if adapted not in self._loaders:
            model = self._model
            ready = partial(merged, model) if adapted and model.lora.merge else lambda tree: tree

            def copy(tree: Params) -> Params:
                return sampling_copy(model, ready(tree))

            where = layout(self._mesh, model, jax.eval_shape(copy, params), name="sampling")
            self._loaders[adapted] = jax.jit(copy, out_shardings=where)
        return self._loaders[adapted](params)

    # The program numbers the rows of all processes, the environment holds those of this one.

    def _act(self, row_B: np.ndarray, *asked: np.ndarray) -> Any:
        return self._environment.act(row_B - self._first_row, *asked)

    def _query(self, row_B: np.ndarray, wants_B: np.ndarray) -> np.ndarray:
        blank = np.zeros((len(row_B), *self._query_E.shape), self._query_E.dtype)
        return self._environment.query(row_B - self._first_row, wants_B, query=blank)

    def _search(self, row_B: np.ndarray, *asked: np.ndarray) -> Any:
        return self._environment.search(row_B - self._first_row, *asked)

    def sample(
        self,
        params: Params,
        key: jax.Array,
        questions: Sequence[Question],
        *,
        group_size: int,
        n_hybrid: int,
        temperature: float,
        probability: float = 0.0,
        noise: float = 0.0,
        last_retrieval: int = FOREVER,
    ) -> Trajectory:
        """Q * G trajectories as numpy arrays; the last `n_hybrid` of each group may retrieve.

        `params` are what `load` returned. `questions` are this process's own; all processes call
        this together, and each gets the trajectories of all questions, in the order of processes.

        Raises:
            RuntimeError: a tool or the memory failed on a host; names the error.
            ValueError: a prompt is longer than `rollout.prompt_tokens`.
        """
        row_questions = [question for question in questions for _ in range(group_size)]
        self._environment.begin(row_questions)
        self._first_row = jax.process_index() * len(row_questions)
        chunks = self._chunks(len(questions))
        hybrid_B = np.tile(
            np.arange(group_size) >= group_size - n_hybrid,
            len(questions) * jax.process_count() // chunks,
        )
        inputs = RolloutInputs(
            key=key,
            hybrid_B=hybrid_B,
            probability=np.float32(probability),
            noise=np.float32(noise),
            temperature=np.float32(temperature),
            last_retrieval=np.int32(last_retrieval),
        )
        inputs = place(inputs, replicated(self._mesh)).replace(
            hybrid_B=place(hybrid_B, rows(self._mesh))
        )
        program = self._program(retrieves=n_hybrid > 0, group_size=group_size)
        found = []
        for prompt, row_B in self._cut(self._prompts(questions), chunks, group_size):
            prompt = place_local_rows(prompt, rows(self._mesh))
            if chunks > 1:
                inputs = inputs.replace(row_B=place(row_B, rows(self._mesh)))
            trajectory = program(params, inputs, prompt)
            if jax.process_count() > 1:
                trajectory = self._everywhere(trajectory)
            found.append(jax.device_get(trajectory))
        trajectory = found[0] if chunks == 1 else self._join(found)
        failure = self._environment.failure
        failures = [each for each in allgather_json(repr(failure) if failure else "") if each]
        if failures:  # of any process: all raise, for none could go on without the others
            raise RuntimeError(f"the callbacks failed during a rollout: {failures[0]}") from failure
        return trajectory

    def _chunks(self, questions: int) -> int:
        """Parts to sample one after another: `rollout.chunks`, or as many of them as come out even.

        `questions` are those of this process; every device needs one of each chunk.
        """
        local_shards = row_shards(self._mesh) // jax.process_count()
        return math.gcd(self._settings.chunks, max(questions // local_shards, 1))

    def _cut(
        self, prompts: Span, chunks: int, group_size: int
    ) -> Iterator[tuple[Span, np.ndarray]]:
        """Of each chunk this process's prompts, and the numbers of all processes' rows."""
        size = len(prompts.length_B) // chunks
        local_B = np.arange(size * group_size, dtype=np.int32)
        for chunk in range(chunks):
            first_P = (
                np.arange(jax.process_count(), dtype=np.int32) * chunks + chunk
            ) * local_B.size
            part = jax.tree.map(
                lambda x, chunk=chunk: x[chunk * size : (chunk + 1) * size], prompts
            )
            yield part, (first_P[:, None] + local_B).reshape(-1)

    def _join(self, chunks: Sequence[Trajectory]) -> Trajectory:
        """Rows of all chunks, process by process."""

        def join(*parts: np.ndarray) -> np.ndarray:
            shape = (jax.process_count(), -1, *parts[0].shape[1:])
            together = np.concatenate([x.reshape(shape) for x in parts], axis=1)
            return together.reshape(-1, *parts[0].shape[1:])

        return jax.tree.map(join, *chunks)

    def _prompts(self, questions: Sequence[Question]) -> Span:
        limit = self._settings.prompt_tokens
        token_QX = np.full((len(questions), limit), self._tokens.pad_id, np.int32)
        length_Q = np.zeros(len(questions), np.int32)
        for q, question in enumerate(questions):
            ids = self._tokens.prompt_ids(self._system, question.question)
            if len(ids) > limit:
                raise ValueError(
                    f"rollout.prompt_tokens={limit}: question {question.id!r} needs {len(ids)}"
                )
            token_QX[q, : len(ids)] = ids
            length_Q[q] = len(ids)
        return Span(token_QX, length_Q)

    def _program(self, *, retrieves: bool, group_size: int) -> Callable[..., Trajectory]:
        at = (retrieves, group_size)
        if at not in self._programs:
            driver = DRIVERS[self._settings.driver]
            self._programs[at] = driver(self, retrieves=retrieves, group_size=group_size)
        return self._programs[at]

    def count_compile(self) -> None:
        self.compiled += 1


def _scan_driver(sampler: Sampler, *, retrieves: bool, group_size: int) -> Callable[..., Any]:
    def program(params: Params, inputs: RolloutInputs, prompt: Span) -> Trajectory:
        sampler.count_compile()  # runs while tracing: once for each compilation
        with on_mesh(sampler._kernel_mesh):
            return rollout(
                sampler._parts,
                partial(host_call, sampler._mesh),
                sampler._callbacks,
                sampler._settings,
                params,
                inputs,
                prompt,
                group_size=group_size,
                retrieves=retrieves,
                repeat=scan_steps,
            )

    return jax.jit(program)


def _host_driver(sampler: Sampler, *, retrieves: bool, group_size: int) -> Callable[..., Any]:
    compiled = sampler._parts.compiled(jax.jit)

    def program(params: Params, inputs: RolloutInputs, prompt: Span) -> Trajectory:
        with on_mesh(sampler._kernel_mesh):
            return rollout(
                compiled,
                call_directly,
                sampler._callbacks,
                sampler._settings,
                params,
                inputs,
                prompt,
                group_size=group_size,
                retrieves=retrieves,
                repeat=loop_steps,
            )

    return program


DRIVERS = {"scan": _scan_driver, "host": _host_driver}

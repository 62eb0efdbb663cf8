"""Trajectories of a policy in its world: the rollout compiled once for each of its two uses."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from rapo_jax.config import ModelSettings, RolloutSettings
from rapo_jax.host.environment import Environment
from rapo_jax.host.protocol import stops
from rapo_jax.host.tasks.schema import Question
from rapo_jax.host.tokens import Tokens, boundary_automaton
from rapo_jax.model.sharding import (
    compute_copy,
    layout,
    place,
    place_own_rows,
    replicated,
    rows,
)
from rapo_jax.model.transformer import init_params
from rapo_jax.rollout.loop import Plan, World, open_rows, parts, rollout, rollout_on_host
from rapo_jax.rollout.spans import Boundary
from rapo_jax.train.distributed import share
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
        ends = stops(tokens.own)
        automaton = boundary_automaton(tokens.bytes_V, ends)
        self._parts = parts(
            model,
            settings,
            Boundary(
                jnp.asarray(automaton.next_state_KV),
                automaton.first_accept,
                ends.index("</answer>"),
                jnp.asarray(tokens.eos_ids, jnp.int32),
            ),
            embed,
        )
        self._query_E = query_E
        self._first_row = 0
        self._world = World(self._act, self._key, self._search, query_E)
        shapes = jax.eval_shape(lambda: init_params(model, jax.random.key(0)))
        self.load = jax.jit(
            partial(compute_copy, model),
            out_shardings=layout(mesh, model, shapes, name="sampling"),
        )
        """Weights in the training layout -> those that `sample` takes: once for each phase."""
        self._everywhere = jax.jit(lambda tape: tape, out_shardings=replicated(mesh))
        self._programs: dict[tuple[bool, int], Callable[..., Trajectory]] = {}
        self.compiled = 0

    # The program numbers the rows of all processes, the environment holds those of this one.

    def _act(self, row_B: np.ndarray, *asked: np.ndarray) -> Any:
        return self._environment.act(row_B - self._first_row, *asked)

    def _key(self, row_B: np.ndarray, wants_B: np.ndarray) -> np.ndarray:
        blank = np.zeros((len(row_B), *self._query_E.shape), self._query_E.dtype)
        return self._environment.key(row_B - self._first_row, wants_B, query=blank)

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
        hybrid_B = np.tile(
            np.arange(group_size) >= group_size - n_hybrid, len(questions) * jax.process_count()
        )
        plan = Plan(
            key=key,
            hybrid_B=hybrid_B,
            probability=np.float32(probability),
            noise=np.float32(noise),
            temperature=np.float32(temperature),
            last_retrieval=np.int32(last_retrieval),
        )
        plan = place(plan, replicated(self._mesh)).replace(
            hybrid_B=place(hybrid_B, rows(self._mesh))
        )
        prompt = place_own_rows(self._prompts(questions), rows(self._mesh))
        program = self._program(retrieves=n_hybrid > 0, group_size=group_size)
        trajectory = program(params, plan, prompt)
        if jax.process_count() > 1:
            trajectory = self._everywhere(trajectory)
        trajectory = jax.device_get(trajectory)
        failure = self._environment.failure
        failures = [each for each in share(repr(failure) if failure else "") if each]
        if failures:  # of any process: all raise, for none could go on without the others
            raise RuntimeError(f"the world failed during a rollout: {failures[0]}") from failure
        return trajectory

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
    def program(params: Params, plan: Plan, prompt: Span) -> Trajectory:
        sampler.count_compile()  # runs while tracing: once for each compilation
        return rollout(
            sampler._parts,
            sampler._world,
            sampler._mesh,
            sampler._model,
            sampler._settings,
            params,
            plan,
            prompt,
            group_size=group_size,
            retrieves=retrieves,
        )

    return jax.jit(program)


def _host_driver(sampler: Sampler, *, retrieves: bool, group_size: int) -> Callable[..., Any]:
    p = sampler._parts
    compiled = p._replace(
        think=jax.jit(p.think),
        read=jax.jit(p.read, static_argnums=4),
        draw=jax.jit(p.draw),
        embed=jax.jit(p.embed),
    )
    opening = jax.jit(partial(open_rows, sampler._model, sampler._settings, group_size=group_size))

    def program(params: Params, plan: Plan, prompt: Span) -> Trajectory:
        return rollout_on_host(
            compiled,
            opening,
            sampler._world,
            sampler._settings,
            params,
            plan,
            prompt,
            retrieves=retrieves,
        )

    return program


DRIVERS = {"scan": _scan_driver, "host": _host_driver}

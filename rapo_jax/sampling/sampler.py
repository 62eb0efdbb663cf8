"""Samples trajectories of a policy for questions, on several processes."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence

import jax
import numpy as np
from jax.sharding import Mesh

from rapo_jax.config import ModelSettings, RolloutSettings
from rapo_jax.distributed import allgather_json
from rapo_jax.environment import Environment
from rapo_jax.method.tape import hybrid_mask
from rapo_jax.model.attention import kernel_of
from rapo_jax.model.decoding import sampling_copy
from rapo_jax.model.lora import ADAPTERS, merged
from rapo_jax.model.sharding import layout, place, place_local_rows, replicated, row_shards, rows
from rapo_jax.rollout.loop import parts
from rapo_jax.rollout.slots import RolloutInputs
from rapo_jax.sampling.batches import row_questions
from rapo_jax.sampling.programs import Program, RolloutSetup, boundary, host_callbacks, make_program
from rapo_jax.tasks.schema import Question
from rapo_jax.text.condensing import Condense
from rapo_jax.text.tokens import Tokens
from rapo_jax.types import Params, Span, Trajectory

FOREVER = 2**30
Condenser = Callable[[Params, jax.Array, float], Condense]
"""(loaded params, key, temperature) -> `Condense`; see `condensing.make_condenser`."""


class Sampler:
    """Samples trajectories for questions; holds the environment and the compiled programs.

    `embed` turns the environment's queries, each of `query_shape`, into keys on the device.
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
        query_shape: jax.ShapeDtypeStruct,
        condenser: Condenser | None = None,
    ) -> None:
        slots = settings.slots // row_shards(mesh)
        if 0 < slots < settings.tree_rows:
            raise ValueError(
                f"rollout.slots={settings.slots}: leaves {slots} to each of {row_shards(mesh)} "
                f"devices, and a tree of rollout.tree_rows={settings.tree_rows} needs one for each "
                "row; raise it, or 0 for as many as rollouts"
            )
        self._tokens, self._environment, self._system = tokens, environment, system
        self._model, self._mesh, self._condenser = model, mesh, condenser
        self._setup = RolloutSetup(
            parts(
                model,
                settings,
                boundary(tokens.bytes_V, eos_ids=tokens.eos_ids, protocol=tokens.protocol),
                embed,
                slots=slots,
            ),
            host_callbacks(environment, query_shape),
            settings,
            mesh,
            mesh if kernel_of(model) else None,
        )
        self._everywhere = jax.jit(lambda tape: tape, out_shardings=replicated(mesh))
        self._loaders: dict[bool, Callable[[Params], Params]] = {}
        self._program = functools.cache(self._make_program)
        self.compiled = 0
        """Rollout programs compiled so far."""
        self.counts: dict[str, int] = {}
        """Of the last rollout of all processes, see `rollout.slots.Counts`."""

    @property
    def most_steps(self) -> int:
        """Steps of a row, those in which a protocol refuses further calls included."""
        return self._setup.settings.most_steps

    def load(self, params: Params) -> Params:
        """Converts weights of the training layout to sampling weights; once for each phase."""
        model, adapted = self._model, ADAPTERS in params
        if adapted not in self._loaders:

            def copy(tree: Params) -> Params:
                merges = adapted and model.lora.merge
                return sampling_copy(model, merged(model, tree) if merges else tree)

            shapes = jax.eval_shape(copy, params)
            where = layout(self._mesh, model, shapes, name="sampling")
            self._loaders[adapted] = jax.jit(copy, out_shardings=where)
        return self._loaders[adapted](params)

    def sample(
        self,
        params: Params,
        key: jax.Array,
        questions: Sequence[Question],
        *,
        temperature: float,
        group_size: int = 1,
        n_hybrid: int = 0,
        probability: float = 0.0,
        noise: float = 0.0,
        last_retrieval: int = FOREVER,
        tree_rows: int = 1,
        first_row: int = 0,
        row_numbers: Sequence[int] | None = None,
    ) -> Trajectory:
        """Samples Q * G trajectories; returns numpy arrays, rows grouped by question.

        All processes call this together, each with its own questions; each gets the trajectories
        of all questions, in the order of processes.

        Args:
            params: what `load` returned.
            questions: those of this process.
            temperature: 0 is greedy.
            n_hybrid: the last rows of each group, which may retrieve.
            probability: chance of retrieval at each step boundary of a hybrid row.
            noise: share of retrievals that return a random trace.
            last_retrieval: last boundary, counted from 1, at which a row may retrieve.
            tree_rows: consecutive rows of a group that may share prefixes (`rollout.branching`);
                1: none do.
            first_row: number of the first row, with which it draws; rows of several calls with one
                key draw independently where their numbers differ.
            row_numbers: numbers of all rows where they are not consecutive; such rows call nothing.

        Raises:
            RuntimeError: a tool or the buffer failed on a host; names the error.
            ValueError: a prompt is longer than `rollout.prompt_tokens`.
        """
        mesh = self._mesh
        prompt_QX, opened = self._prompts(questions)
        condense = self._condenser(params, key, temperature) if self._condenser else None
        asked = row_questions(questions, group_size)
        self._environment.begin(asked, opened=opened, condense=condense, first_row=first_row)
        everyone = len(questions) * jax.process_count()
        hybrid_B = hybrid_mask(everyone, group_size=group_size, n_hybrid=n_hybrid)
        row_B = first_row + np.arange(len(hybrid_B), dtype=np.int32)
        if row_numbers is not None:
            row_B = np.array(row_numbers, np.int32)
        scalars = {"probability": probability, "noise": noise, "temperature": temperature}
        inputs = self._inputs(key, row_B, hybrid_B, last_retrieval, scalars)
        program = self._program(n_hybrid > 0, group_size, tree_rows)
        prompt = place_local_rows(prompt_QX, rows(mesh))
        tape, counts = program(params, inputs, prompt)
        if jax.process_count() > 1:
            tape, counts = self._everywhere((tape, counts))
        tape, counts = jax.device_get((tape, counts))
        self.counts = {
            field.name: int(getattr(counts, field.name).sum())
            for field in dataclasses.fields(counts)
        }
        self._raise_failure()
        return tape

    def _inputs(
        self,
        key: jax.Array,
        row_B: np.ndarray,
        hybrid_B: np.ndarray,
        last_retrieval: int,
        scalars: Mapping[str, float],
    ) -> RolloutInputs:
        """The inputs of a program, placed on its mesh; `scalars` by their names there."""
        everywhere = replicated(self._mesh)
        numbers = {name: np.float32(x) for name, x in scalars.items()}
        return RolloutInputs(
            place(key, everywhere),
            *place((row_B, hybrid_B), rows(self._mesh)),
            last_retrieval=place(np.int32(last_retrieval), everywhere),
            **place(numbers, everywhere),
        )

    def _raise_failure(self) -> None:
        """Raises on all processes what failed on any: none could continue without the others."""
        failure = self._environment.failure
        failures = [each for each in allgather_json(repr(failure) if failure else "") if each]
        if failures:
            raise RuntimeError(f"the callbacks failed during a rollout: {failures[0]}") from failure

    def _prompts(self, questions: Sequence[Question]) -> tuple[Span, str]:
        """The prompts, and what the template opens of every response."""
        limit = self._setup.settings.prompt_tokens
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
        opened, _ = self._tokens.opened(token_QX[0, : length_Q[0]])
        return Span(token_QX, length_Q), opened

    def _make_program(self, retrieves: bool, group_size: int, tree_rows: int) -> Program:
        def count_compile() -> None:
            self.compiled += 1

        return make_program(
            self._setup,
            count_compile,
            retrieves=retrieves,
            group_size=group_size,
            tree_rows=tree_rows,
        )

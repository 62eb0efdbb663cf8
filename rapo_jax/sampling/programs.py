"""Builds the rollout program, and the drivers that run it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from rapo_jax.config import RolloutSettings
from rapo_jax.environment import Environment
from rapo_jax.model.sharding import EVERYWHERE, ROWS, on_mesh, on_row_shards
from rapo_jax.rollout.bridge import host_call
from rapo_jax.rollout.loop import (
    HostCallbacks,
    Parts,
    call_directly,
    loop_unfinished,
    rollout,
    while_unfinished,
)
from rapo_jax.rollout.slots import Counts, RolloutInputs, Slots
from rapo_jax.rollout.thinking import Boundary
from rapo_jax.text.boundary import boundary_automaton
from rapo_jax.text.protocols import Protocol
from rapo_jax.types import (
    ActAnswer,
    ActRequest,
    Params,
    Span,
    Texts,
    TraceRequest,
    Trajectory,
)

Rolled = tuple[Trajectory, Counts]
Result = TypeVar("Result")
Program = Callable[[Params, RolloutInputs, Span], Rolled]


class RolloutSetup(NamedTuple):
    """Arguments of `make_program` that all rollout programs of a sampler share."""

    parts: Parts
    callbacks: HostCallbacks
    settings: RolloutSettings
    mesh: Mesh
    kernel_mesh: Mesh | None
    """Mesh over which kernels are sharded by hand; the compiler places all else."""


def host_callbacks(environment: Environment, query_shape: jax.ShapeDtypeStruct) -> HostCallbacks:
    """The environment's callbacks for a program that numbers the rows of all processes.

    The environment holds those of this process; every process has as many.
    """
    process = jax.process_index()

    def local(row_U: np.ndarray) -> np.ndarray:
        return row_U - environment.first_row - process * len(environment.calls)

    def act(request: ActRequest) -> ActAnswer:
        here = request.replace(row_U=local(request.row_U), parent_U=local(request.parent_U))
        blank = np.zeros((len(here.row_U), *query_shape.shape), query_shape.dtype)
        return environment.act(here, query_U=blank)

    def search(request: TraceRequest) -> Texts:
        return environment.search(request.replace(row_U=local(request.row_U)))

    return HostCallbacks(act, search, query_shape)


def boundary(bytes_V: Sequence[bytes], *, eos_ids: Sequence[int], protocol: Protocol) -> Boundary:
    """The automaton that finds the end of a step in tokens, on the device."""
    ends, answer = protocol.stops, protocol.answer_stop
    automaton = boundary_automaton(bytes_V, ends)
    return Boundary(
        jnp.asarray(automaton.next_state_AV),
        automaton.first_accept,
        ends.index(answer) if answer else -1,
        jnp.asarray(eos_ids, jnp.int32),
        asks_at_eos=protocol.at_eos == "parse",
    )


INPUTS = RolloutInputs(
    key=EVERYWHERE,
    row_B=ROWS,
    hybrid_B=ROWS,
    probability=EVERYWHERE,
    noise=EVERYWHERE,
    temperature=EVERYWHERE,
    last_retrieval=EVERYWHERE,
)
"""How the inputs of a rollout are spread over shards of rows."""


def compiled(parts: Parts, mesh: Mesh) -> Parts:
    """Compiles each part over all shards, for the Python loop."""

    def shards(
        part: Callable[..., Result], *specs: object, donated: int | None = None
    ) -> Callable[..., Result]:
        return jax.jit(on_row_shards(mesh, part, specs), donate_argnums=donated)

    @partial(jax.jit, static_argnames=("group_size", "tree_rows"))
    def open_slots(params: Params, prompt: Span, *, group_size: int, tree_rows: int) -> Slots:
        open_shard = partial(parts.open, group_size=group_size, tree_rows=tree_rows)
        return on_row_shards(mesh, open_shard, (EVERYWHERE, ROWS))(params, prompt)

    return Parts(
        open_slots,
        shards(parts.think, EVERYWHERE, INPUTS, ROWS, donated=2),
        shards(parts.ask, INPUTS, ROWS),
        shards(parts.embed, ROWS, ROWS),
        shards(parts.read, EVERYWHERE, INPUTS, ROWS, ROWS, donated=2),
        shards(parts.close, ROWS),
    )


def make_program(
    setup: RolloutSetup,
    count_compile: Callable[[], None],
    *,
    retrieves: bool,
    group_size: int,
    tree_rows: int,
) -> Program:
    """Builds the rollout function for `rollout.driver`.

    `count_compile` is called when the jitted program is traced (never with driver='host').
    """
    mesh, fixed = setup.mesh, (setup.callbacks, setup.settings)
    roll = partial(rollout, group_size=group_size, retrieves=retrieves, tree_rows=tree_rows)
    shard = partial(roll, setup.parts, partial(host_call, mesh), *fixed, repeat=while_unfinished)
    loop = partial(roll, compiled(setup.parts, mesh), call_directly, *fixed, repeat=loop_unfinished)

    def in_program(*arguments: object) -> Rolled:
        count_compile()  # runs while tracing
        with on_mesh(setup.kernel_mesh):
            return on_row_shards(mesh, shard, (EVERYWHERE, INPUTS, ROWS))(*arguments)

    def from_python(params: Params, inputs: RolloutInputs, prompt: Span) -> Rolled:
        with on_mesh(setup.kernel_mesh):
            return loop(params, inputs, prompt)

    drivers: dict[str, Program] = {"jit": jax.jit(in_program), "host": from_python}
    return drivers[setup.settings.driver]

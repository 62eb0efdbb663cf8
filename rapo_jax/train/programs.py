"""The rollout as a program: what it is built from, and the drivers that run it."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from rapo_jax.config import RolloutSettings
from rapo_jax.environment import Environment
from rapo_jax.model.sharding import on_mesh
from rapo_jax.rollout.bridge import host_call
from rapo_jax.rollout.loop import (
    CallHost,
    HostCallbacks,
    Parts,
    RolloutInputs,
    call_directly,
    loop_steps,
    rollout,
    scan_steps,
)
from rapo_jax.rollout.spans import Boundary, Tape
from rapo_jax.text.protocol import stops
from rapo_jax.text.tokens import Tokens, boundary_automaton
from rapo_jax.types import Params, Span, Trajectory

Program = Callable[[Params, RolloutInputs, Span], Trajectory]


class RolloutSetup(NamedTuple):
    """What the rollout programs of a sampler are built from."""

    parts: Parts
    callbacks: HostCallbacks
    settings: RolloutSettings
    mesh: Mesh
    kernel_mesh: Mesh | None
    """Mesh over which kernels are cut by hand; the compiler places all else."""


def host_callbacks(environment: Environment, query_E: jax.ShapeDtypeStruct) -> HostCallbacks:
    """The environment's callbacks for a program that numbers the rows of all processes.

    The environment holds those of this process; every process has as many.
    """
    process = jax.process_index()

    def local(row_B: np.ndarray) -> np.ndarray:
        return row_B - process * len(environment.calls)

    def act(row_B: np.ndarray, *arrays: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        return environment.act(local(row_B), *arrays)

    def query(row_B: np.ndarray, wants_B: np.ndarray) -> np.ndarray:
        blank = np.zeros((len(row_B), *query_E.shape), query_E.dtype)
        return environment.query(local(row_B), wants_B, query=blank)

    def search(row_B: np.ndarray, *arrays: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        return environment.search(local(row_B), *arrays)

    return HostCallbacks(act, query, search, query_E)


def boundary(tokens: Tokens) -> Boundary:
    """The automaton that finds the end of a step in tokens, on the device."""
    ends = stops(tokens.user_tools)
    automaton = boundary_automaton(tokens.bytes_V, ends)
    return Boundary(
        jnp.asarray(automaton.next_state_AV),
        automaton.first_accept,
        ends.index("</answer>"),
        jnp.asarray(tokens.eos_ids, jnp.int32),
    )


def compiled(parts: Parts) -> Parts:
    """The parts, each compiled, for the loop in Python."""
    return Parts(
        jax.jit(parts.open, static_argnums=2),
        jax.jit(parts.think),
        jax.jit(parts.read, static_argnums=4),
        jax.jit(parts.draw),
        jax.jit(parts.embed),
    )


def make_program(
    setup: RolloutSetup, count_compile: Callable[[], None], *, retrieves: bool, group_size: int
) -> Program:
    """The rollout of `rollout.driver`; `count_compile` is called for each compilation of a scan."""
    parts, call_host, repeat = DRIVERS[setup.settings.driver](setup)

    def program(params: Params, inputs: RolloutInputs, prompt: Span) -> Trajectory:
        if repeat is scan_steps:
            count_compile()  # runs while tracing
        with on_mesh(setup.kernel_mesh):
            return rollout(
                parts,
                call_host,
                setup.callbacks,
                setup.settings,
                params,
                inputs,
                prompt,
                group_size=group_size,
                retrieves=retrieves,
                repeat=repeat,
            )

    return jax.jit(program) if repeat is scan_steps else program


DRIVERS: dict[str, Callable[[RolloutSetup], tuple[Parts, CallHost, Callable[..., Tape]]]] = {
    "scan": lambda setup: (setup.parts, partial(host_call, setup.mesh), scan_steps),
    "host": lambda setup: (compiled(setup.parts), call_directly, loop_steps),
}
"""Parts, bridge and loop of a rollout: one program, or a loop in Python of compiled parts."""

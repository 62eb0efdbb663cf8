"""Compiles a run's programs ahead of time for TPUs that this machine does not have.

The update is the trainer's own two programs; the rollout is `rollout.loop.rollout` with the host's
answers as arguments: arrays of the same shapes, without a host to call. No weight is ever made:
programs are compiled from shapes.
"""

from __future__ import annotations

import re
import time
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.stages import Lowered

from rapo_jax.config import ModelSettings, Settings
from rapo_jax.model.decoding import sampling_copy
from rapo_jax.model.sharding import (
    layout,
    make_mesh,
    on_mesh,
    replicated,
    row_shards,
    rows,
    state_layout,
)
from rapo_jax.plan.arithmetic import Way, micro_rows
from rapo_jax.plan.chips import Slice
from rapo_jax.plan.collectives import collective_bytes
from rapo_jax.rollout.loop import HostCallbacks, RolloutInputs, parts, rollout, scan_steps
from rapo_jax.rollout.spans import Boundary
from rapo_jax.text.protocol import stops
from rapo_jax.text.tokens import boundary_automaton
from rapo_jax.train.loop import policy_optimizer
from rapo_jax.train.policy import policy_shapes
from rapo_jax.train.update import Updater, rapo_loss
from rapo_jax.types import Array, Batch, Params, Span, TrainState, Trajectory

Answer = tuple[Array, Array, Array]
"""(token_BX, length_B, healthy_B) of a host callback."""


class Program(NamedTuple):
    """The compiler's numbers for one program: bytes and FLOPs of one chip and one call."""

    name: str
    argument: float
    output: float
    temporary: float
    flops: float
    """As XLA counts them, the body of a loop once."""
    sent: Counter[str]
    seconds: float
    """Time to lower and compile it."""
    refused: str
    """The compiler's message if the program does not fit; '' if it does."""


def tpu_mesh(chips: Slice, way: Way) -> Mesh:
    """The mesh of a slice of TPUs, made of devices that can only be compiled for.

    Raises:
        ValueError: libtpu is missing, or does not know the slice.
    """
    from jax.experimental import topologies

    try:
        devices = topologies.get_topology_desc(chips.name, platform="tpu").devices
    except Exception as error:  # its type depends on the version: missing module, failed plugin
        text = str(error).splitlines()[0] if str(error) else type(error).__name__
        known = "INVALID_ARGUMENT" in text
        raise ValueError(
            f"plan.topology={chips.name!r}: libtpu does not know it ({text})"
            if known
            else f"plan.topology={chips.name!r}: plan.compile needs libtpu, which does not load "
            f"here ({text}); bash launch/plan.sh makes an environment with it"
        ) from error
    return make_mesh(devices, data=1, fsdp=way.fsdp, tensor=way.tensor)


def placed(tree: Params, shardings: object) -> Params:
    """Shapes with shardings: one for all, or a pytree (or prefix) of them."""

    def one(x: jax.ShapeDtypeStruct, sharding: NamedSharding) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding)

    return jax.tree.map(one, tree, jax.tree.broadcast(shardings, tree))


def byte_boundary(vocab: int, *, user_tools: Sequence[str] = ()) -> Boundary:
    """The step boundaries of a made-up vocabulary of single bytes without stop tokens."""
    closing = stops(tuple(user_tools))
    automaton = boundary_automaton([bytes([i % 256]) for i in range(vocab)], closing)
    return Boundary(
        jnp.asarray(automaton.next_state_AV),
        automaton.first_accept,
        closing.index("</answer>"),
        jnp.full(1, -1, jnp.int32),
    )


def lowered_rollout(
    s: Settings, model: ModelSettings, mesh: Mesh, *, chunks: int, key_width: int
) -> Lowered:
    """The rollout of one of `chunks` chunks of questions.

    The number of states of the boundary automaton is exact: it depends on the closing tags alone.
    """
    r = s.rollout
    questions, here, everywhere = r.questions // chunks, rows(mesh), replicated(mesh)
    count = questions * r.group_size
    boundary = byte_boundary(model.vocab, user_tools=[name for name, *_ in s.tools.user_tools])
    step_parts = parts(model, r, boundary, lambda key_BE: key_BE)
    query = jax.ShapeDtypeStruct((key_width,), jnp.float32)

    def program(
        params: Params,
        inputs: RolloutInputs,
        prompt: Span,
        observation: Answer,
        query_BE: Array,
        trace: Answer,
    ) -> Trajectory:
        callbacks = HostCallbacks(
            lambda *_: observation, lambda *_: query_BE, lambda *_: trace, query
        )
        with on_mesh(mesh):
            return rollout(
                step_parts,
                lambda callback, *_: callback(),
                callbacks,
                r,
                params,
                inputs,
                prompt,
                group_size=r.group_size,
                retrieves=s.n_hybrid > 0,
                repeat=scan_steps,
            )

    def answers(tokens: int) -> tuple[jax.ShapeDtypeStruct, ...]:
        int_BX, int_B = _shape(here, count, tokens), _shape(here, count)
        return int_BX, int_B, _shape(here, count, dtype=bool)

    number = _shape(everywhere, dtype=np.float32)
    shapes = policy_shapes(model)
    copies = jax.eval_shape(partial(sampling_copy, model), shapes)
    inputs = RolloutInputs(
        key=placed(jax.eval_shape(lambda: jax.random.key(0)), everywhere),
        hybrid_B=_shape(here, count, dtype=bool),
        probability=number,
        noise=number,
        temperature=number,
        last_retrieval=_shape(everywhere),
    )
    return jax.jit(program).lower(
        placed(copies, layout(mesh, model, copies, name="sampling")),
        inputs,
        Span(_shape(here, questions, r.prompt_tokens), _shape(here, questions)),
        answers(r.observation_tokens),
        _shape(here, count, key_width, dtype=np.float32),
        answers(r.retrieved_tokens),
    )


def _shape(sharding: NamedSharding, *sides: int, dtype: type = np.int32) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(sides, dtype, sharding=sharding)


def lowered_update(s: Settings, model: ModelSettings, mesh: Mesh) -> tuple[Lowered, Lowered]:
    """The trainer's programs: one more micro-batch of the widest rows, and the optimizer's step."""
    here, everywhere = rows(mesh), replicated(mesh)
    optimizer, _ = policy_optimizer(s)
    shapes = policy_shapes(model)
    where = layout(mesh, model, shapes, name="training")
    moments = jax.eval_shape(optimizer.init, shapes)
    state = TrainState(
        placed(shapes, where),
        placed(moments, state_layout(mesh, optimizer, shapes, where)),
        _shape(everywhere),
    )
    updater = Updater(
        rapo_loss(model, s.rl),
        optimizer,
        state,
        mesh=mesh,
        buckets=s.rl.buckets,
        micro_tokens=s.rl.micro_tokens,
    )
    B, T = micro_rows(s, row_shards(mesh)), s.rl.buckets[-1]
    int_BT = _shape(here, B, T)
    float_BT, float_B = _shape(here, B, T, dtype=np.float32), _shape(here, B, dtype=np.float32)
    micro = (state.params, Batch(int_BT, int_BT, float_BT, float_B, float_B), float_B, None)
    sums = placed(jax.eval_shape(updater.sums_of, *micro), updater.sums_layout)
    weight = _shape(everywhere, dtype=np.float32)
    return updater.add.lower(sums, *micro), updater.apply.lower(state, sums, weight)


def compile_program(name: str, lower: Callable[[], Lowered], *, chips: int, ticks: int) -> Program:
    """Compiles one program; one that is too large is `refused`, with the bytes that it would need.

    `ticks` are the iterations of loops for which the compiler does not give the number.
    """
    started = time.perf_counter()
    lowered = lower()
    try:
        compiled = lowered.compile()
    except Exception as error:
        if "RESOURCE_EXHAUSTED" not in str(error) and "Ran out of memory" not in str(error):
            raise
        seconds = time.perf_counter() - started
        return Program(name, 0, 0, _used(str(error)), 0, Counter(), seconds, _message(str(error)))
    m, costs, text = compiled.memory_analysis(), compiled.cost_analysis(), compiled.as_text()
    assert m is not None and costs is not None and text is not None
    return Program(
        name,
        m.argument_size_in_bytes,
        m.output_size_in_bytes - m.alias_size_in_bytes,
        m.temp_size_in_bytes,
        (costs[0] if isinstance(costs, list) else costs).get("flops", 0.0),
        collective_bytes(text, devices=chips, unknown_trips=ticks),
        time.perf_counter() - started,
        "",
    )


def _used(message: str) -> float:
    """Bytes of `Used 18.5G of 15.75G hbm`, arguments included; G is 2 ** 30."""
    match = re.search(r"Used ([\d.]+)([KMG]) of", message)
    return float(match[1]) * 1024 ** " KMG".index(match[2]) if match else 0.0


def _message(text: str) -> str:
    match = re.search(r"Ran out of memory[^\n]*", text) or re.match(r"[^\n]*", text)
    return match[0][:200] if match else ""


def compiled_programs(s: Settings, model: ModelSettings, chips: Slice, way: Way) -> list[Program]:
    """The programs of a micro-batch, of the optimizer's step, and of the rollout of one chunk.

    Prints a line for each one.
    """
    mesh = tpu_mesh(chips, way)
    width = 384 if s.retrieval.encoder == "minilm" else s.retrieval.width
    lowers: dict[str, Callable[[], Lowered]] = {
        "update": lambda: lowered_update(s, model, mesh)[0],
        "optimizer": lambda: lowered_update(s, model, mesh)[1],
        "rollout": lambda: lowered_rollout(s, model, mesh, chunks=way.chunks, key_width=width),
    }
    programs = []
    for name, lower in lowers.items():
        program = compile_program(name, lower, chips=chips.chips, ticks=s.rollout.step_tokens)
        line = (
            f"{chips.name}: {name} compiled in {program.seconds:.0f} s: "
            f"{program.argument / 1e9:.2f} GB of arguments, {program.temporary / 1e9:.2f} GB of "
            f"temporaries {program.refused}"
        )
        print(line.rstrip(), flush=True)
        programs.append(program)
    return programs

"""A run's programs, compiled ahead of time for chips that are not here.

The update is the trainer's own two programs; the rollout is `rollout.loop.rollout`. Only the
host's answers come as arguments: they are the same arrays that the bridge would bring, and a plan
has no host to call. No weight is ever made: all is shapes.
"""

from __future__ import annotations

import re
import time
from collections import Counter
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

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
from rapo_jax.model.transformer import init_params
from rapo_jax.plan.arithmetic import Way, micro_rows
from rapo_jax.plan.chips import Slice
from rapo_jax.plan.collectives import collective_bytes
from rapo_jax.rollout.loop import HostCallbacks, RolloutInputs, parts, rollout, scan_steps
from rapo_jax.rollout.spans import Boundary
from rapo_jax.text.protocol import stops
from rapo_jax.text.tokens import boundary_automaton
from rapo_jax.train.optimizer import learning_rate_schedule, make_optimizer
from rapo_jax.train.update import Updater, rapo_loss
from rapo_jax.types import Batch, Span, TrainState, Trajectory


class Program(NamedTuple):
    """What the compiler says of one program; bytes and FLOPs of one chip and one call."""

    name: str
    argument: float
    output: float
    temporary: float
    flops: float
    """As XLA counts them, the body of a loop once."""
    sent: Counter[str]
    seconds: float
    """That compiling it took."""
    refused: str
    """The compiler's own words where the program does not fit; '' where it does."""


def tpu_mesh(chips: Slice, way: Way) -> Mesh:
    """The mesh of a slice of TPUs, of devices that only a compiler can use.

    Raises:
        ValueError: libtpu is missing, or does not know the slice.
    """
    from jax.experimental import topologies

    try:
        devices = topologies.get_topology_desc(chips.name, platform="tpu").devices
    except Exception as error:  # of several types, by version: a missing module, a failed plugin
        text = str(error).splitlines()[0] if str(error) else type(error).__name__
        known = "INVALID_ARGUMENT" in text
        raise ValueError(
            f"plan.topology={chips.name!r}: libtpu does not know it ({text})"
            if known
            else f"plan.topology={chips.name!r}: plan.compile needs libtpu, which cannot be had "
            f"here ({text}); bash launch/plan.sh makes an environment with it"
        ) from error
    return make_mesh(devices, data=1, fsdp=way.fsdp, tensor=way.tensor)


def placed(tree: Any, shardings: Any) -> Any:
    """Shapes that lie where `shardings`, a tree or the top of one, says."""

    def one(x: Any, at: Any) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=at)

    return jax.tree.map(one, tree, jax.tree.broadcast(shardings, tree))


def lowered_rollout(
    s: Settings, model: ModelSettings, mesh: Mesh, *, chunks: int, width: int
) -> Any:
    """One chunk of a rollout; `width` is that of the keys of the Step-Trace Buffer."""
    r = s.rollout
    questions, here = r.questions // chunks, rows(mesh)
    count = questions * r.group_size
    # Any tokenizer has tokens of these bytes; how many closing tags' states there are is exact.
    ends = stops(tuple(name for name, *_ in s.tools.user_tools))
    automaton = boundary_automaton([bytes([i % 256]) for i in range(model.vocab)], ends)
    table = Boundary(
        jnp.asarray(automaton.next_state_AV),
        automaton.first_accept,
        ends.index("</answer>"),
        jnp.zeros(2, jnp.int32),
    )
    step_parts = parts(model, r, table, lambda key_BE: key_BE)
    query = jax.ShapeDtypeStruct((width,), jnp.float32)
    callbacks: Any = HostCallbacks("act", "query", "search", query)  # type: ignore[arg-type]

    def program(
        params: Any, inputs: RolloutInputs, prompt: Span, answers: dict[str, Any]
    ) -> Trajectory:
        def answer_of(callback: str, *_: Any) -> Any:
            return answers[callback]

        with on_mesh(mesh):
            return rollout(
                step_parts,
                answer_of,
                callbacks,
                r,
                params,
                inputs,
                prompt,
                group_size=r.group_size,
                retrieves=s.n_hybrid > 0,
                repeat=scan_steps,
            )

    def shape(*sides: int, dtype: Any = np.int32, at: Any = here) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(sides, dtype, sharding=at)

    def answer(tokens: int) -> tuple[jax.ShapeDtypeStruct, ...]:
        return shape(count, tokens), shape(count), shape(count, dtype=bool)

    everywhere = replicated(mesh)
    number = partial(shape, dtype=np.float32, at=everywhere)
    shapes = jax.eval_shape(lambda: init_params(model, jax.random.key(0)))
    copies = jax.eval_shape(partial(sampling_copy, model), shapes)
    params = placed(copies, layout(mesh, model, copies, name="sampling"))
    inputs = RolloutInputs(
        key=placed(jax.eval_shape(lambda: jax.random.key(0)), everywhere),
        hybrid_B=shape(count, dtype=bool),
        probability=number(),
        noise=number(),
        temperature=number(),
        last_retrieval=shape(at=everywhere),
    )
    answers = {
        "act": answer(r.observation_tokens),
        "query": shape(count, width, dtype=np.float32),
        "search": answer(r.retrieved_tokens),
    }
    prompt = Span(shape(questions, r.prompt_tokens), shape(questions))
    return jax.jit(program).lower(params, inputs, prompt, answers)


def lowered_update(s: Settings, model: ModelSettings, mesh: Mesh) -> tuple[Any, Any]:
    """The trainer's programs: one more micro-batch of the widest rows, and the optimizer's step."""
    o, here, everywhere = s.optimizer, rows(mesh), replicated(mesh)
    schedule = learning_rate_schedule(
        learning_rate=o.learning_rate, warmup=o.warmup, schedule=o.schedule, steps=s.rl.steps
    )
    optimizer = make_optimizer(
        schedule,
        clip_norm=o.clip_norm,
        b1=o.b1,
        b2=o.b2,
        eps=o.eps,
        weight_decay=o.weight_decay,
    )
    shapes = jax.eval_shape(lambda: init_params(model, jax.random.key(0)))
    where = layout(mesh, model, shapes, name="training")
    state = TrainState(
        placed(shapes, where),
        placed(
            jax.eval_shape(optimizer.init, shapes), state_layout(mesh, optimizer, shapes, where)
        ),
        jax.ShapeDtypeStruct((), np.int32, sharding=everywhere),
    )
    shards = row_shards(mesh)
    updater = Updater(
        rapo_loss(model, s.rl),
        optimizer,
        state,
        mesh=mesh,
        buckets=s.rl.buckets,
        micro_tokens=s.rl.micro_tokens,
    )
    B, T = micro_rows(s, shards), s.rl.buckets[-1]

    def shape(*sides: int, dtype: Any = np.float32) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(sides, dtype, sharding=here)

    batch = Batch(
        shape(B, T, dtype=np.int32), shape(B, T, dtype=np.int32), shape(B, T), shape(B), shape(B)
    )
    micro = (state.params, batch, shape(B), None)
    sums = placed(jax.eval_shape(updater.sums_of, *micro), updater.sums_layout)
    weight = jax.ShapeDtypeStruct((), np.float32, sharding=everywhere)
    return updater.add.lower(sums, *micro), updater.apply.lower(state, sums, weight)


def compile_program(name: str, lower: Callable[[], Any], *, chips: int, ticks: int) -> Program:
    """Compiles one program; one that is too large comes back with the bytes that it would need."""
    started = time.perf_counter()
    lowered = lower()
    try:
        compiled = lowered.compile()
    except Exception as error:
        if "RESOURCE_EXHAUSTED" not in str(error) and "Ran out of memory" not in str(error):
            raise
        seconds = time.perf_counter() - started
        return Program(name, 0, 0, _used(str(error)), 0, Counter(), seconds, _words(str(error)))
    m, costs = compiled.memory_analysis(), compiled.cost_analysis()
    sent = collective_bytes(compiled.as_text(), devices=chips, unknown_trips=ticks)
    return Program(
        name,
        m.argument_size_in_bytes,
        m.output_size_in_bytes - m.alias_size_in_bytes,
        m.temp_size_in_bytes,
        (costs[0] if isinstance(costs, list) else costs).get("flops", 0.0),
        sent,
        time.perf_counter() - started,
        "",
    )


def _used(message: str) -> float:
    """Bytes of `Used 18.5G of 15.75G hbm`, arguments included; G is 2 ** 30."""
    found = re.search(r"Used ([\d.]+)([KMG]) of", message)
    return float(found[1]) * 1024 ** " KMG".index(found[2]) if found else 0.0


def _words(message: str) -> str:
    found = re.search(r"Ran out of memory[^\n]*", message) or re.match(r"[^\n]*", message)
    return found[0][:200] if found else ""


def compiled_programs(
    s: Settings, model: ModelSettings, chips: Slice, way: Way, *, tell: Callable[[str], None]
) -> list[Program]:
    """The rollout of a chunk, a micro-batch of the update, the optimizer's step."""
    mesh = tpu_mesh(chips, way)
    width = 384 if s.retrieval.encoder == "minilm" else s.retrieval.width
    lowers: dict[str, Callable[[], Any]] = {
        "update": lambda: lowered_update(s, model, mesh)[0],
        "optimizer": lambda: lowered_update(s, model, mesh)[1],
        "rollout": lambda: lowered_rollout(s, model, mesh, chunks=way.chunks, width=width),
    }
    found = []
    for name, lower in lowers.items():
        program = compile_program(name, lower, chips=chips.chips, ticks=s.rollout.step_tokens)
        tell(
            f"{chips.name}: {name} compiled in {program.seconds:.0f} s: "
            f"{program.argument / 1e9:.2f} GB of arguments, {program.temporary / 1e9:.2f} GB of "
            f"temporaries {program.refused}".rstrip()
        )
        found.append(program)
    return found

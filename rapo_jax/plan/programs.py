"""Compiles a run's programs ahead of time for chips that this machine does not have.

The update is the trainer's own two programs; the rollout is `rollout.loop.rollout` with the host's
answers as arguments: arrays of the same shapes, without a host to call. No weight is ever made:
programs are compiled from shapes.
"""

from __future__ import annotations

import contextlib
import re
import time
from collections import Counter
from collections.abc import Callable, Iterator
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental.compilation_cache import compilation_cache
from jax.sharding import Mesh, NamedSharding
from jax.stages import Lowered

from rapo_jax.config import ModelSettings, Settings
from rapo_jax.model.attention import kernel_of
from rapo_jax.model.lora import trained
from rapo_jax.model.scoring import chunks_of, positions_at_a_time
from rapo_jax.model.sharding import (
    EVERYWHERE,
    ROWS,
    layout,
    on_mesh,
    on_row_shards,
    replicated,
    row_shards,
    rows,
    state_layout,
)
from rapo_jax.plan.arithmetic import micro_rows
from rapo_jax.plan.chips import Slice
from rapo_jax.plan.collectives import collective_bytes
from rapo_jax.plan.devices import slice_mesh
from rapo_jax.plan.shapes import Split, model_shapes
from rapo_jax.rollout.loop import HostCallbacks, parts, rollout, while_unfinished
from rapo_jax.rollout.slots import Counts, RolloutInputs
from rapo_jax.rollout.thinking import Boundary
from rapo_jax.run.policy import policy_shapes
from rapo_jax.sampling.programs import INPUTS, boundary
from rapo_jax.text.protocol import user_tool_names
from rapo_jax.text.protocols import Protocol, find_protocol, rapo
from rapo_jax.train.loop import policy_optimizer
from rapo_jax.train.update import Updater, rapo_loss
from rapo_jax.types import (
    ActAnswer,
    Batch,
    Params,
    Span,
    Texts,
    TrainState,
    Trajectory,
)


class Program(NamedTuple):
    """The compiler's numbers for one program: bytes and FLOPs of one chip and one call."""

    name: str
    argument: float
    output: float
    temporary: float
    flops: float | None
    """As XLA counts them, the body of a loop once; None where it does not (GPUs)."""
    sent: Counter[str]
    seconds: float
    """Time to lower and compile it."""
    refused: str
    """The compiler's message if the program does not fit; '' if it does."""


def placed(tree: Params, shardings: object) -> Params:
    """Shapes with shardings: one for all, or a pytree (or prefix) of them."""

    def one(x: jax.ShapeDtypeStruct, sharding: NamedSharding) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding)

    return jax.tree.map(one, tree, jax.tree.broadcast(shardings, tree))


def byte_boundary(vocab: int, *, protocol: Protocol | None = None) -> Boundary:
    """The step boundaries of a synthetic vocabulary of single bytes without stop tokens."""
    return boundary(
        [bytes([i % 256]) for i in range(vocab)], eos_ids=[-1], protocol=protocol or rapo()
    )


def lowered_rollout(
    s: Settings, model: ModelSettings, mesh: Mesh, *, slots: int, key_width: int
) -> Lowered:
    """The rollout of a batch, through `slots` slots in each shard of rows.

    The number of states of the boundary automaton is exact: it depends on the closing tags alone.
    """
    r = s.rollout
    here, everywhere = rows(mesh), replicated(mesh)
    protocol = find_protocol(s.protocol, user_tool_names(name for name, *_ in s.tools.user_tools))
    ends = byte_boundary(model.vocab, protocol=protocol)
    rollout_parts = parts(model, r, ends, lambda key_UE: key_UE, slots=slots)
    query = jax.ShapeDtypeStruct((key_width,), jnp.float32)

    def of_shard(
        params: Params, inputs: RolloutInputs, prompt: Span, acted: ActAnswer, trace: Texts
    ) -> tuple[Trajectory, Counts]:
        return rollout(
            rollout_parts,
            lambda callback, shapes, needed_U, request: callback(request),
            HostCallbacks(lambda _: acted, lambda _: trace, query),
            r,
            params,
            inputs,
            prompt,
            group_size=r.group_size,
            retrieves=s.n_hybrid > 0,
            tree_rows=r.tree_rows,
            repeat=while_unfinished,
        )

    def program(*arguments: object) -> tuple[Trajectory, Counts]:
        with on_mesh(mesh if kernel_of(model) else None):
            specs = (EVERYWHERE, INPUTS, ROWS, ROWS, ROWS)
            return on_row_shards(mesh, of_shard, specs)(*arguments)

    U, B = slots * row_shards(mesh), r.questions * r.group_size
    flag_U, int_U = _shape(here, U, dtype=bool), _shape(here, U)
    observation_UX, trace_UX = (
        _shape(here, U, n) for n in (r.observation_tokens, r.retrieved_tokens)
    )
    query_UE = _shape(here, U, key_width, dtype=np.float32)
    number = _shape(everywhere, dtype=np.float32)
    _, copies = model_shapes(model)
    inputs = RolloutInputs(
        key=placed(jax.eval_shape(lambda: jax.random.key(0)), everywhere),
        row_B=_shape(here, B),
        hybrid_B=_shape(here, B, dtype=bool),
        probability=number,
        noise=number,
        temperature=number,
        last_retrieval=_shape(everywhere),
    )
    return jax.jit(program).lower(
        placed(copies, layout(mesh, model, copies, name="sampling")),
        inputs,
        Span(_shape(here, r.questions, r.prompt_tokens), _shape(here, r.questions)),
        ActAnswer(flag_U, Texts(flag_U, Span(observation_UX, int_U)), query_UE),
        Texts(flag_U, Span(trace_UX, int_U)),
    )


def _shape(sharding: NamedSharding, *sides: int, dtype: type = np.int32) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(sides, dtype, sharding=sharding)


def lowered_update(s: Settings, model: ModelSettings, mesh: Mesh) -> tuple[Lowered, Lowered]:
    """The trainer's programs: one more micro-batch of the widest rows, and the optimizer's step."""
    here, everywhere = rows(mesh), replicated(mesh)
    optimizer, _ = policy_optimizer(s)
    shapes = policy_shapes(model)
    where = layout(mesh, model, shapes, name="training")
    changed, changed_where = trained(shapes), trained(where)
    moments = jax.eval_shape(optimizer.init, changed)
    state = TrainState(
        placed(shapes, where),
        placed(moments, state_layout(mesh, optimizer, changed, changed_where)),
        _shape(everywhere),
    )
    updater = Updater(rapo_loss(model, s.rl), optimizer, state, mesh=mesh, rl=s.rl)
    B, T = micro_rows(s, row_shards(mesh)), s.rl.buckets[-1]
    int_BT = _shape(here, B, T)
    float_BT, float_B = _shape(here, B, T, dtype=np.float32), _shape(here, B, dtype=np.float32)
    micro = (state.params, Batch(int_BT, int_BT, float_BT, float_B, float_B), float_B, None)
    sums = placed(jax.eval_shape(updater.sums_of, *micro), updater.sums_layout)
    weight = _shape(everywhere, dtype=np.float32)
    without_base = state.replace(params=trained(state.params))
    return updater.add.lower(sums, *micro), updater.apply.lower(without_base, sums, weight)


def logit_chunks(s: Settings, model: ModelSettings, split: Split) -> int:
    """Turns of the update's loop over logits, if all positions are the policy's."""
    positions = micro_rows(s, split.fsdp) // split.fsdp * s.rl.buckets[-1]
    at_a_time = positions_at_a_time(model.score_logits, model.vocab, split.tensor)
    return chunks_of(positions, at_a_time)[0]


def compile_program(
    name: str, lower: Callable[[], Lowered], *, chips: int, unknown_trips: int = 1
) -> Program:
    """Compiles one program; one that is too large is `refused`, with the bytes that it would need.

    `unknown_trips`: iterations of loops for which the compiler does not give their number.
    """
    started = time.perf_counter()
    lowered = lower()
    try:
        with _without_cache():
            compiled = lowered.compile()
    except Exception as error:
        if "RESOURCE_EXHAUSTED" not in str(error) and "Ran out of memory" not in str(error):
            raise
        seconds = time.perf_counter() - started
        return Program(name, 0, 0, _used(str(error)), 0, Counter(), seconds, _message(str(error)))
    m, costs, text = compiled.memory_analysis(), compiled.cost_analysis(), compiled.as_text()
    assert m is not None and text is not None
    return Program(
        name,
        m.argument_size_in_bytes,
        m.output_size_in_bytes - m.alias_size_in_bytes,
        m.temp_size_in_bytes,
        _flops(costs),
        collective_bytes(text, devices=chips, unknown_trips=unknown_trips),
        time.perf_counter() - started,
        "",
    )


@contextlib.contextmanager
def _without_cache() -> Iterator[None]:
    """jax cannot read back from its cache what it compiled for devices that are not here."""
    before: bool = jax.config.jax_enable_compilation_cache  # type: ignore[attr-defined]
    jax.config.update("jax_enable_compilation_cache", False)
    compilation_cache.reset_cache()  # jax asks only once whether it has a cache
    try:
        yield
    finally:
        jax.config.update("jax_enable_compilation_cache", before)
        compilation_cache.reset_cache()


def _flops(costs: list[dict[str, float]] | dict[str, float] | None) -> float | None:
    costs = costs[0] if isinstance(costs, list) else costs
    return costs.get("flops") if costs else None


def _used(message: str) -> float:
    """Bytes of `Used 18.5G of 15.75G hbm`, arguments included; G is 2 ** 30."""
    match = re.search(r"Used ([\d.]+)([KMG]) of", message)
    return float(match[1]) * 1024 ** " KMG".index(match[2]) if match else 0.0


def _message(text: str) -> str:
    match = re.search(r"Ran out of memory[^\n]*", text) or re.match(r"[^\n]*", text)
    return match[0][:200] if match else ""


def compiled_programs(
    s: Settings, model: ModelSettings, chips: Slice, split: Split
) -> list[Program]:
    """The programs of a micro-batch, of the optimizer's step, and of the rollout.

    Prints a line for each one.
    """
    mesh = slice_mesh(chips, split)
    width = 384 if s.retrieval.encoder == "minilm" else s.retrieval.width
    lowers: dict[str, Callable[[], Lowered]] = {
        "update": lambda: lowered_update(s, model, mesh)[0],
        "optimizer": lambda: lowered_update(s, model, mesh)[1],
        "rollout": lambda: lowered_rollout(s, model, mesh, slots=split.slots, key_width=width),
    }
    programs = []
    for name, lower in lowers.items():
        trips = logit_chunks(s, model, split) if name == "update" else 1
        program = compile_program(name, lower, chips=chips.chips, unknown_trips=trips)
        line = (
            f"{chips.name}: {name} compiled in {program.seconds:.0f} s: "
            f"{program.argument / 1e9:.2f} GB of arguments, {program.temporary / 1e9:.2f} GB of "
            f"temporaries {program.refused}"
        )
        print(line.rstrip(), flush=True)
        programs.append(program)
    return programs

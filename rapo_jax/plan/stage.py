"""The stage `plan`: which slices a run fits on, as tables."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import jax

from rapo_jax.config import ModelSettings, Settings
from rapo_jax.model.attention import choose
from rapo_jax.model.lora import detach, trained
from rapo_jax.plan.arithmetic import Way
from rapo_jax.plan.chips import Slice, slices
from rapo_jax.plan.estimate import Estimate, estimate, rows_at_once
from rapo_jax.plan.models import planned_model
from rapo_jax.plan.programs import Program, compiled_programs, tpu_mesh
from rapo_jax.train.policy import policy_shapes

GB = 1e9
HEAD = (
    "slice", "fits", "mesh", "chunks", "remat", "parameters", "optimizer", "gradients", "copy",
    "cache", "temporaries", "peak", "of", "headroom", "FLOPs", "sent", "seconds", "rollouts",
)  # fmt: skip
NOTES = (
    "GB (1e9 bytes), PFLOPs (1e15) and seconds of one chip and one training step, by arithmetic: "
    "every row as long as it may be, every chip at its published peak: a lower "
    "bound of the seconds, which no run has been measured against.",
    "temporaries: rollout / update. peak: the larger of both phases; the copy to sample with is "
    "there in both. of: what a program may have, 90 % of a GPU. sent: GB of collectives. "
    "rollouts: as many as would fit at once.",
)


def plan(settings: Settings, workdir: Path) -> None:
    """Prints what the run of `settings` would need on `plan.topology`; the workdir stays empty.

    Raises:
        ValueError: no such slice, a model whose shape is not known, or libtpu is missing.
    """
    refuse_what_no_plan_covers(settings)
    wanted = [slices(name.strip()) for name in settings.plan.topology.split(",")]
    model = planned_model(settings.model)
    if settings.plan.compile:
        for found in (each for group in wanted for each in group[:1] if on_tpu(each)):
            tpu_mesh(found, Way(found.chips, 1, 1, "full"))  # libtpu is there and knows it
    for line in planned(settings, model, wanted):
        print(line, flush=True)


def refuse_what_no_plan_covers(s: Settings) -> None:
    if not s.plan.topology:
        raise ValueError(
            "plan.topology='': name the chips to plan for, such as v5e:8x8, v5p:2x2x4, h100x8, gpu"
        )
    if s.model.lora.rank and s.plan.compile:
        raise ValueError(
            f"plan.compile=True: with model.lora.rank={s.model.lora.rank} a plan is by arithmetic "
            "alone; set it to False"
        )


def on_tpu(found: Slice) -> bool:
    return found.chip.platform == "tpu"


def planned(s: Settings, model: ModelSettings, wanted: list[list[Slice]]) -> list[str]:
    """The tables as lines of Markdown: of each list of slices the first that fits, or the last."""
    r = s.rollout
    shapes = policy_shapes(model)
    count, own = (
        sum(x.size for x in jax.tree.leaves(tree)) for tree in (detach(shapes), trained(shapes))
    )
    name = Path(model.folder).name or "model"
    adapters = (
        f", frozen, {own / 1e6:.3g} million in adapters of rank {model.lora.rank}"
        if model.lora.rank
        else ""
    )
    lines = [
        f"{name}: {count / 1e9:.2f} billion parameters, {model.dtype}{adapters}; {r.questions} x "
        f"{r.group_size} rollouts of at most {r.max_tokens} tokens ({r.prompt_tokens} of prompt)",
        "",
        *_row(HEAD),
        "|" + " --- |" * len(HEAD),
    ]
    chosen = [found for group in _by_kind(wanted) if (found := first_fitting(s, model, group))]
    lines += [row for found in chosen for row in _row(cells(s, found))]
    named = [each.slice for each in chosen]
    for group in wanted:
        if len(group) == 1 and group[0] not in named:
            lines += [
                "",
                f"{group[0].name}: its {group[0].chips} chips cannot share "
                f"rollout.questions={r.questions} evenly; set it to a multiple",
            ]
    lines += ["", *NOTES]
    lines += [f"{found.slice.name}: {found.way.flags}" for found in chosen]
    for found in chosen:
        if s.plan.compile and on_tpu(found.slice):
            lines += ["", *compiled_table(s, model, found)]
    return lines


def _by_kind(wanted: list[list[Slice]]) -> list[list[Slice]]:
    """`gpu` is two kinds, of each of which the smallest slice is looked for."""
    groups = []
    for group in wanted:
        for kind in dict.fromkeys(each.kind for each in group):
            groups.append([each for each in group if each.kind == kind])
    return groups


def first_fitting(s: Settings, model: ModelSettings, group: list[Slice]) -> Estimate | None:
    tried = [found for each in group if (found := estimate(s, model, each))]
    return next((found for found in tried if found.fits), tried[-1] if tried else None)


def _row(cells: tuple[str, ...]) -> list[str]:
    return ["| " + " | ".join(cells) + " |"]


def cells(s: Settings, found: Estimate) -> tuple[str, ...]:
    b, w, way, memory = found.bytes, found.work, found.way, found.slice.usable

    def gb(*numbers: float) -> str:
        return " / ".join(f"{number / GB:.1f}" for number in numbers)

    return (
        found.slice.name,
        "yes" if found.fits else "no",
        f"1 x {way.fsdp} x {way.tensor}",
        str(way.chunks),
        way.remat,
        gb(b.parameters),
        gb(b.optimizer),
        gb(b.gradients),
        gb(b.copy),
        gb(b.cache),
        gb(b.rollout, b.update),
        gb(b.peak),
        gb(memory),
        gb(memory - b.peak),
        f"{(w.rollout_flops + w.update_flops) / 1e15:.3g}",
        gb(w.rollout_sent + w.update_sent),
        f"{w.rollout_seconds:.0f} + {w.update_seconds:.0f}",
        str(rows_at_once(s, found)),
    )


def compiled_table(s: Settings, model: ModelSettings, found: Estimate) -> list[str]:
    """What the compiler says of the run's own programs on a slice of TPUs."""
    chips, way = found.slice, found.way
    model = dataclasses.replace(
        model, attention=choose(model, platform="tpu").name, remat=way.remat
    )
    programs = compiled_programs(s, model, chips, way, tell=lambda line: print(line, flush=True))
    head = ("program", "arguments", "output", "temporaries", "there besides", "peak", "of",
            "fits", "FLOPs", "sent", "compiled in")  # fmt: skip
    lines = [f"{chips.name}, {way.flags}: compiled ahead of time", ""]
    lines += [*_row(head), "|" + " --- |" * len(head)]
    lines += [row for each in programs for row in _row(compiled_cells(each, found))]
    note = (
        "GB of one chip and one call: a chunk, a micro-batch of the widest rows, a step of the "
        "optimizer. FLOPs as XLA counts them, the body of a loop once; sent counts loops by their "
        "trips, decoding by rollout.step_tokens. The world's answers are arguments here: the host "
        "callback itself is not compiled, nor is the encoder of keys."
    )
    return [*lines, "", note, *(f"{p.name}: {p.refused}" for p in programs if p.refused)]


def compiled_cells(program: Program, found: Estimate) -> tuple[str, ...]:
    b, memory = found.bytes, found.slice.usable
    besides = {
        "rollout": b.parameters + b.optimizer,
        "update": b.optimizer + b.copy,
        "optimizer": b.copy,
    }[program.name]
    peak = program.argument + program.output + program.temporary + besides
    fits = not program.refused and peak <= memory
    numbers = (program.argument, program.output, program.temporary, besides, peak, memory)
    return (
        program.name,
        *(f"{number / GB:.2f}" for number in numbers),
        "yes" if fits else "no",
        f"{program.flops:.3g}",
        f"{program.sent.total() / GB:.2f}",
        f"{program.seconds:.0f} s",
    )

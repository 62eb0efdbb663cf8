"""The stage `plan`: prints tables of the slices that a run fits on."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import jax

from rapo_jax.config import ModelSettings, Settings
from rapo_jax.io.tables import markdown_table
from rapo_jax.model.attention import choose
from rapo_jax.model.lora import detach, trained
from rapo_jax.plan.chips import Slice, slices
from rapo_jax.plan.devices import slice_mesh
from rapo_jax.plan.estimate import Estimate, estimate, largest_slots
from rapo_jax.plan.models import planned_model
from rapo_jax.plan.programs import Program, compiled_programs
from rapo_jax.plan.shapes import Split, shape_on
from rapo_jax.run.policy import policy_shapes

GB = 1e9
HEAD = (
    "slice", "fits", "mesh", "slots", "remat", "parameters", "optimizer", "gradients", "copy",
    "cache", "temporaries", "peak", "of", "headroom", "FLOPs", "sent", "seconds", "most slots",
)  # fmt: skip
NOTES = (
    "GB (1e9 bytes), PFLOPs (1e15) and seconds of one chip and one training step, by arithmetic, "
    "for rows of the largest allowed length and chips at their published peak: a lower bound of "
    "the seconds, not compared with a measured run.",
    "parameters: with rl.kl, and after the slash, those at the start of RL too. slots: rollouts at "
    "a time on all chips. cache: of the slots / of all prompts. temporaries: "
    "rollout, tapes included / update. peak: the larger of both phases; the update is an upper "
    "bound, because it also counts the sampling weights, which the trainer frees first. of: the "
    "bytes that a program may use, 90 % of a GPU. sent: GB of collectives. seconds: of rollout + "
    "update; a sampled or read token attends to half of the longest row. most slots: those that "
    "would fit.",
)


def plan(settings: Settings, workdir: Path) -> None:
    """Prints the needs of the run of `settings` on `plan.topology`; writes nothing to the workdir.

    Raises:
        ValueError: there is no such slice, the model's shape is not known, or a compiler is
            missing.
    """
    if not settings.plan.topology:
        raise ValueError(
            "plan.topology='': name the chips to plan for, such as v5e:8x8, v5p:2x2x4, h100x8, gpu"
        )
    wanted = [slices(name.strip()) for name in settings.plan.topology.split(",")]
    model = planned_model(settings.model)
    if settings.plan.compile:  # raises now, not after minutes, if a compiler is missing
        for chips in (group[0] for group in wanted):
            slice_mesh(chips, Split(chips.chips, 1, 1, "full"))
    for line in planned(settings, model, wanted):
        print(line, flush=True)


def planned(s: Settings, model: ModelSettings, wanted: list[list[Slice]]) -> list[str]:
    """The tables as lines of Markdown: for each list of slices the first that fits, or the last."""
    r, estimates = s.rollout, []
    for group in wanted:
        for kind in dict.fromkeys(each.kind for each in group):  # `gpu` is two kinds
            tried = [e for each in group if each.kind == kind and (e := estimate(s, model, each))]
            estimates += [e for e in tried if e.fits][:1] or tried[-1:]
    table = markdown_table(HEAD, [cells(s, model, each) for each in estimates])
    lines = [_title(s, model), "", *table.splitlines()]
    known = [each.slice for each in estimates]
    for group in wanted:
        if not any(each in known for each in group):
            lines += [
                "",
                f"{group[0].name}: its {group[0].chips} chips cannot share "
                f"rollout.questions={r.questions} evenly; set it to a multiple",
            ]
    lines += ["", *NOTES]
    lines += [f"{each.slice.name}: {each.split.flags}" for each in estimates]
    for each in estimates:
        if s.plan.compile:
            lines += ["", *compiled_table(s, model, each)]
    return lines


def _title(s: Settings, model: ModelSettings) -> str:
    r, shapes = s.rollout, policy_shapes(model)
    base, changed = (
        sum(x.size for x in jax.tree.leaves(tree)) for tree in (detach(shapes), trained(shapes))
    )
    adapters = f", frozen, {changed / 1e6:.3g} million in adapters of rank {model.lora.rank}"
    return (
        f"{Path(model.folder).name or 'model'}: {base / 1e9:.2f} billion parameters, {model.dtype}"
        f"{adapters if model.lora.rank else ''}; {r.questions} x {r.group_size} rollouts of at "
        f"most {r.max_tokens} tokens ({r.prompt_tokens} of prompt); a checkpoint takes "
        f"{12 * changed / GB:.3g} GB of disk, and {s.checkpoint.keep + 1} exist at a time"
    )


def cells(s: Settings, model: ModelSettings, chosen: Estimate) -> tuple[str, ...]:
    """One row of the table HEAD."""
    b, w, split, memory = chosen.bytes, chosen.work, chosen.split, chosen.slice.usable

    def gb(*numbers: float) -> str:
        return " / ".join(f"{number / GB:.1f}" for number in numbers)

    return (
        chosen.slice.name,
        "yes" if chosen.fits else "no",
        f"1 x {split.fsdp} x {split.tensor}",
        str(split.all_slots),
        split.remat,
        gb(b.parameters, *[b.reference] * (b.reference > 0)),
        gb(b.optimizer),
        gb(b.gradients),
        gb(b.copy),
        gb(b.cache, b.prompts),
        gb(b.rollout, b.update),
        gb(b.peak),
        gb(memory),
        gb(memory - b.peak),
        f"{(w.rollout_flops + w.update_flops) / 1e15:.3g}",
        gb(w.rollout_sent + w.update_sent),
        f"{w.rollout_seconds:.0f} + {w.update_seconds:.0f}",
        str(largest_slots(s, model, chosen)),
    )


def compiled_table(s: Settings, model: ModelSettings, chosen: Estimate) -> list[str]:
    """The compiler's numbers for the run's programs on a slice."""
    chips, split = chosen.slice, chosen.split
    attention = choose(model, platform=chips.chip.platform)
    if attention.name == "plain" and chips.chip.platform == "gpu":
        # Without a kernel's name programs are traced for the platform that is here.
        return [
            f"{chips.name}: not compiled, because a program for GPUs needs a kernel of attention: "
            f"{attention.note or 'model.attention=plain'}"
        ]
    model = dataclasses.replace(model, attention=attention.name, remat=split.remat)
    programs = compiled_programs(s, model, chips, split)
    head = ("program", "arguments", "output", "temporaries", "also in memory", "peak", "of",
            "fits", "FLOPs", "sent", "compiled in")  # fmt: skip
    note = (
        "GB of one chip and one call: a rollout, a micro-batch of the widest rows, a step of the "
        "optimizer. FLOPs as XLA counts them, the body of a loop once; sent counts the body of an "
        "update's loops for each iteration, of a rollout's once: the prompts, a tick, a chunk "
        "of one row. The host's answers are arguments here: the host callback itself is not "
        "compiled, nor is the encoder of keys. On GPUs cuDNN's attention is a call of a library "
        "whose scratch memory the compiler does not know: that of the update is by arithmetic, "
        "under *also in memory*."
    )
    return [
        f"{chips.name}, {split.flags}: compiled ahead of time",
        "",
        *markdown_table(head, [compiled_cells(model, x, chosen) for x in programs]).splitlines(),
        "",
        note,
        *(f"{each.name}: {each.refused}" for each in programs if each.refused),
    ]


def compiled_cells(model: ModelSettings, program: Program, chosen: Estimate) -> tuple[str, ...]:
    b, split, memory = chosen.bytes, chosen.split, chosen.slice.usable
    frozen = shape_on(model, fsdp=split.fsdp, tensor=split.tensor).frozen
    besides = {
        "rollout": b.parameters + b.optimizer + b.reference,
        "update": b.optimizer + b.reference + b.copy + b.scratch,
        "optimizer": b.reference + b.copy + frozen,
    }[program.name]
    peak = program.argument + program.output + program.temporary + besides
    fits = not program.refused and peak <= memory
    numbers = (program.argument, program.output, program.temporary, besides, peak, memory)
    return (
        program.name,
        *(f"{number / GB:.2f}" for number in numbers),
        "yes" if fits else "no",
        "" if program.flops is None else f"{program.flops:.3g}",
        f"{program.sent.total() / GB:.2f}",
        f"{program.seconds:.0f} s",
    )

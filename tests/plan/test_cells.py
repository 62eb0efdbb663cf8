"""Peaks and the tables of the stage plan: each number is the one that its column names."""

from __future__ import annotations

from collections import Counter

import jax
import pytest

from configs import default
from rapo_jax.config.read import read_settings
from rapo_jax.model.lora import ADAPTERS
from rapo_jax.plan.arithmetic import Bytes
from rapo_jax.plan.chips import slices
from rapo_jax.plan.estimate import Estimate, Work, largest_slots
from rapo_jax.plan.programs import Program
from rapo_jax.plan.shapes import Split, shape_on
from rapo_jax.plan.stage import HEAD, _title, cells, compiled_cells
from rapo_jax.run.policy import policy_shapes

GB = 1e9
HELD = Bytes(
    parameters=1 * GB, optimizer=2 * GB, gradients=4 * GB, reference=0.5 * GB, copy=0.25 * GB,
    cache=3 * GB, prompts=0.125 * GB, rollout=5 * GB, update=6 * GB, scratch=0.75 * GB,
)  # fmt: skip
WORK = Work(
    rollout_flops=3e15, update_flops=4e15, rollout_sent=1e9, update_sent=2e9,
    rollout_seconds=11.0, update_seconds=22.0,
)  # fmt: skip
STATE = 1 + 2 + 0.5 + 0.25
CHOSEN = Estimate(slices("h100x8")[0], Split(4, 2, 3, "dots"), HELD, WORK)


def settings_of(*, rank=0, keep=1):
    c = default.get_config()
    c.stages, c.model.vocab, c.model.lora.rank, c.checkpoint.keep = ("plan",), 64, rank, keep
    return read_settings(c.to_dict())


def test_a_peak_is_that_of_the_phase_that_holds_more():
    assert HELD.rollout_peak == (STATE + 3 + 0.125 + 5) * GB
    assert HELD.update_peak == (STATE + 4 + 6) * GB == HELD.peak
    assert HELD._replace(cache=9 * GB).peak == (STATE + 9 + 0.125 + 5) * GB


def test_each_cell_of_the_table_has_the_number_that_its_column_names():
    s = settings_of()
    found = dict(zip(HEAD, cells(s, s.model, CHOSEN), strict=True))
    assert found == {
        "slice": "h100x8",
        "fits": "yes",
        "mesh": "1 x 4 x 2",
        "slots": "12",
        "remat": "dots",
        "parameters": "1.0 / 0.5",  # and those at the start of RL
        "optimizer": "2.0",
        "gradients": "4.0",
        "copy": "0.2",
        "cache": "3.0 / 0.1",
        "temporaries": "5.0 / 6.0",
        "peak": "13.8",
        "of": "72.0",  # 90 % of 80
        "headroom": "58.2",
        "FLOPs": "7",
        "sent": "3.0",
        "seconds": "11 + 22",
        "most slots": str(largest_slots(s, s.model, CHOSEN)),
    }
    crowded = CHOSEN._replace(bytes=HELD._replace(update=66 * GB, reference=0))
    found = dict(zip(HEAD, cells(s, s.model, crowded), strict=True))
    assert found["fits"] == "no" and found["headroom"] == "-1.2" and found["parameters"] == "1.0"


@pytest.mark.parametrize(
    ("name", "besides"),
    [("rollout", 1 + 2 + 0.5), ("update", 2 + 0.5 + 0.25 + 0.75), ("optimizer", 0.5 + 0.25)],
)
def test_beside_a_program_there_is_in_memory_what_it_does_not_take(name, besides):
    program = Program(
        name, argument=10 * GB, output=20 * GB, temporary=30 * GB, flops=None, sent=Counter(a=GB),
        seconds=3.0, refused="",
    )  # fmt: skip
    for refused, fits in (("", "yes"), ("too large", "no")):
        row = compiled_cells(settings_of().model, program._replace(refused=refused), CHOSEN)
        numbers = (10, 20, 30, besides, 60 + besides, 72)
        assert row[:7] == (name, *(f"{number:.2f}" for number in numbers))
        assert row[7:] == (fits, "", "1.00", "3 s")
    row = compiled_cells(settings_of().model, program._replace(argument=30 * GB), CHOSEN)
    assert row[7] == "no"


def test_beside_the_optimizer_there_is_the_frozen_base():
    model = settings_of(rank=4).model
    frozen = shape_on(model, fsdp=4, tensor=2).frozen
    program = Program("optimizer", 0, 0, 0, None, Counter(), 0.0, "")
    chosen = CHOSEN._replace(bytes=HELD._replace(reference=0, copy=9e9))
    assert compiled_cells(model, program, chosen)[4] == f"{(9e9 + frozen) / GB:.2f}"
    assert frozen > 0 == shape_on(settings_of().model, fsdp=4, tensor=2).frozen


@pytest.mark.parametrize("rank", [0, 4])
def test_a_checkpoint_has_what_is_trained_with_both_moments_and_one_more_is_written_meanwhile(rank):
    s = settings_of(rank=rank, keep=3)
    shapes = policy_shapes(s.model)
    changed = sum(x.size for x in jax.tree.leaves(shapes[ADAPTERS] if rank else shapes))
    text = _title(s, s.model)
    assert f"a checkpoint takes {12 * changed / GB:.3g} GB of disk, and 4 exist at a time" in text


def test_the_flags_of_a_split_are_those_of_its_axes():
    flags = Split(fsdp=8, tensor=2, slots=3, remat="dots").flags.split()
    assert flags == [
        "--config.mesh.data=1", "--config.mesh.fsdp=8", "--config.mesh.tensor=2",
        "--config.rollout.slots=24", "--config.model.remat=dots",
    ]  # fmt: skip

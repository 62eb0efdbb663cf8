"""Bytes sent between chips, for programs whose traffic is known."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from rapo_jax.model.sharding import make_mesh
from rapo_jax.plan.collectives import bytes_of, collective_bytes


def compiled(function, mesh, *, into, out, shape):
    at = NamedSharding(mesh, PartitionSpec(into))
    argument = jax.ShapeDtypeStruct(shape, jnp.float32, sharding=at)
    program = jax.jit(function, out_shardings=NamedSharding(mesh, PartitionSpec(out)))
    return program.lower(argument).compile().as_text()


@pytest.fixture(scope="module")
def mesh():
    return make_mesh(jax.devices()[:8], fsdp=8, data=1)


def test_gathering_an_array_sends_all_of_it_but_the_local_part(mesh):
    text = compiled(lambda x: x + 1, mesh, into="fsdp", out=None, shape=(8, 100))
    sent = collective_bytes(text, devices=8, unknown_trips=1)
    assert sent == {"all-gather": 8 * 100 * 4 * 7 / 8}


def test_a_sum_over_chips_sends_the_result_twice_but_the_local_part(mesh):
    text = compiled(lambda x: x.sum(0), mesh, into="fsdp", out=None, shape=(8, 64))
    sent = collective_bytes(text, devices=8, unknown_trips=1)
    assert sent == {"all-reduce": 2 * 64 * 4 * 7 / 8}


def test_a_loop_counts_once_for_each_iteration(mesh):
    def five(x):
        return jax.lax.fori_loop(0, 5, lambda _, y: y + jnp.sin(y.sum(0)), x)

    text = compiled(five, mesh, into="fsdp", out="fsdp", shape=(8, 64))
    sent = collective_bytes(text, devices=8, unknown_trips=1)
    assert sent == {"all-reduce": 5 * 2 * 64 * 4 * 7 / 8}


def test_a_loop_of_unknown_length_counts_as_often_as_the_caller_says(mesh):
    def until_large(x):
        return jax.lax.while_loop(lambda y: y[0, 0] < 9, lambda y: y + jnp.sin(y.sum(0)), x)

    text = compiled(until_large, mesh, into="fsdp", out="fsdp", shape=(8, 64))
    once, often = (
        collective_bytes(text, devices=8, unknown_trips=n)["all-reduce"] for n in (1, 11)
    )
    assert often - once >= 10 * 2 * 64 * 4 * 7 / 8 * 0.999


HLO = """HloModule m

%branch_a (p: f32[4]) -> f32[4] {
  ROOT %r = f32[4]{0} all-reduce(f32[4]{0} %p), replica_groups={{0,1},{2,3}}, to_apply=%add
}

%branch_b (p.1: f32[4]) -> f32[4] {
  ROOT %p.1 = f32[4]{0} parameter(0)
}

ENTRY %main (x: bf16[2,8], y: f32[4]) -> f32[4] {
  %s = (bf16[2,8]{1,0}, bf16[8,8]{1,0}) all-gather-start(bf16[2,8]{1,0} %x), \
replica_groups=[2,4]<=[8], dimensions={0}
  %d = bf16[8,8]{1,0} all-gather-done(%s)
  %q = f32[4]{0} collective-permute(f32[4]{0} %y), source_target_pairs={{0,1},{1,0}}
  ROOT %c = f32[4]{0} conditional(s32[] %i, f32[4]{0} %y, f32[4]{0} %y), \
branch_computations={%branch_a, %branch_b}
}
"""


def test_asynchronous_collectives_count_once_and_the_costliest_branch_counts():
    sent = collective_bytes(HLO, devices=8, unknown_trips=1)
    assert sent == {
        "all-gather": 8 * 8 * 2 * 3 / 4,
        "all-reduce": 2 * 4 * 4 / 2,
        "collective-permute": 4 * 4,
    }


def test_bytes_of_a_tuple_are_those_of_its_parts():
    assert bytes_of("(bf16[2,3]{1,0}, f32[], pred[5])") == 12 + 4 + 5


LOOP = """HloModule m

%below_seven (p: (s32[], f32[4])) -> pred[] {
  %limit.1 = s32[]{:T(128)} constant(7)
  %p = (s32[]{:T(128)}, f32[4]{0:T(128)}) parameter(0)
  %i = s32[]{:T(128)} get-tuple-element(%p), index=0
  ROOT %lt = pred[]{:T(512)} compare(%i, %limit.1), direction=LT
}

%turn (p.1: (s32[], f32[4])) -> (s32[], f32[4]) {
  %x = f32[4]{0:T(128)} get-tuple-element(%p.1), index=1
  %q = f32[4]{0:T(128)} collective-permute(%x), source_target_pairs={{0,1},{1,0}}
  ROOT %t = (s32[]{:T(128)}, f32[4]{0:T(128)}) tuple(%i, %q)
}

ENTRY %main (x: f32[4]) -> f32[4] {
  ROOT %w = (s32[]{:T(128)}, f32[4]{0:T(128)}) while(%z), condition=%below_seven, body=%turn
}
"""


def test_for_tpus_the_iterations_of_a_loop_are_read_from_its_condition():
    found = collective_bytes(LOOP, devices=2, unknown_trips=1000)
    assert found == {"collective-permute": 7 * 4 * 4}


def test_a_loop_with_another_reason_to_end_counts_the_largest_number_of_iterations():
    ends = LOOP.replace("ROOT %lt =", "%lt =").replace(
        "direction=LT\n",
        "direction=LT\n  %any = pred[] get-tuple-element(%p), index=1\n"
        "  ROOT %and = pred[]{:T(512)} and(%any, %lt)\n",
    )
    found = collective_bytes(ends, devices=2, unknown_trips=1000)
    assert found == {"collective-permute": 7 * 4 * 4}


@pytest.mark.parametrize(
    ("groups", "chips"),
    [
        ("mesh['axis_0'=16,'axis_1'=4] {'axis_1'}", 4),
        ("mesh['axis_0'=16,'axis_1'=1,'axis_2'=4] {'axis_0','axis_1'}", 16),
        ("mesh['axis_0'=2,'axis_1'=2], device_ids=([2,2]T(1,0)) {'axis_0'}", 2),
    ],
)
def test_groups_may_be_named_by_the_axes_of_a_mesh(groups, chips):
    hlo = (
        "ENTRY %main (x: f32[4]) -> f32[4] {\n"
        f"  ROOT %r = f32[4]{{0}} all-reduce(%x), channel_id=5, replica_groups={groups}, "
        "to_apply=%add\n}\n"
    )
    sent = collective_bytes(hlo, devices=64, unknown_trips=1)
    assert sent == {"all-reduce": round(2 * 16 * (chips - 1) / chips)}


def sent_by(*lines, before="", devices=4):
    """Of a program of these lines, after the functions `before`."""
    body = "".join(f"  {line}\n" for line in lines)
    hlo = f"HloModule m\n\n{before}ENTRY %main (x: f32[8], y: f32[12]) -> f32[8] {{\n{body}}}\n"
    return collective_bytes(hlo, devices=devices, unknown_trips=1)


def test_a_sum_whose_parts_stay_apart_sends_a_part_to_each_other_chip():
    line = "ROOT %r = f32[2]{0} reduce-scatter(%x), replica_groups={{0,1,2,3}}, to_apply=%add"
    assert sent_by(line) == {"reduce-scatter": 2 * 4 * 3}


def test_an_exchange_sends_all_but_the_part_that_stays():
    line = "ROOT %r = f32[8]{0} all-to-all(%x), replica_groups={{0,1,2,3}}, dimensions={0}"
    assert sent_by(line) == {"all-to-all": 8 * 4 * 3 / 4}


def test_a_collective_without_groups_is_one_of_all_chips():
    line = "ROOT %r = f32[8]{0} all-gather(%x), dimensions={0}"
    assert sent_by(line, devices=8) == {"all-gather": 8 * 4 * 7 / 8}


@pytest.mark.parametrize(
    "shape",
    [
        "((f32[2]{0}, f32[3]{0}), (f32[8]{0}, f32[12]{0}))",
        "((f32[2]{0:T(8)}, f32[3]{0:T(8)}), (f32[8]{0:T(8)}, f32[12]{0:T(8)}), u32[]{:S(2)})",
    ],
)
def test_several_arrays_gathered_at_once_without_waiting_all_count(shape):
    start = (
        f"%s = {shape} all-gather-start(%x, %y), replica_groups={{{{0,1,2,3}}}}, dimensions={{0}}"
    )
    done = "ROOT %d = (f32[8]{0}, f32[12]{0}) all-gather-done(%s)"
    assert sent_by(start, done) == {"all-gather": (8 + 12) * 4 * 3 / 4}


def test_the_operands_of_a_started_sum_of_parts_are_not_its_result():
    start = "%s = ((f32[8]{0}), f32[2]{0}) reduce-scatter-start(%x), replica_groups={{0,1,2,3}}"
    assert sent_by(start) == {"reduce-scatter": 2 * 4 * 3}


def test_several_arrays_summed_at_once_without_waiting_all_count():
    """The shape of an asynchronous sum is its result alone."""
    start = "%s = (f32[8]{0}, f32[12]{0}) all-reduce-start(%x, %y), replica_groups={{0,1,2,3}}"
    assert sent_by(start) == {"all-reduce": 2 * (8 + 12) * 4 * 3 / 4}


def test_for_tpus_a_sum_of_which_each_chip_keeps_a_part_is_sent_once():
    fused = (
        "%all-reduce-scatter.1 (p: f32[8]) -> f32[2] {\n"
        "  %r = f32[8]{0} all-reduce(%p), replica_groups={{0,1,2,3}}, to_apply=%add\n"
        "  ROOT %d = f32[2]{0} dynamic-slice(%r, %i), dynamic_slice_sizes={2}\n}\n\n"
    )
    call = "ROOT %f = f32[2]{0} fusion(%x), kind=kCustom, calls=%all-reduce-scatter.1"
    assert sent_by(call, before=fused) == {"reduce-scatter": 8 * 4 * 3 / 4}


def test_the_branches_of_a_condition_may_be_named_one_by_one():
    branches = "".join(
        f"%{name} (p: f32[{size}]) -> f32[{size}] {{\n"
        f"  ROOT %q = f32[{size}]{{0}} collective-permute(%p), source_target_pairs={{}}\n}}\n\n"
        for name, size in (("small", 4), ("large", 8))
    )
    choice = "ROOT %c = f32[8]{0} conditional(%i, %x, %y), "
    choice += "true_computation=%small, false_computation=%large"
    assert sent_by(choice, before=branches) == {"collective-permute": 8 * 4}

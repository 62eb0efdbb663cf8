"""The names of slices of chips."""

from __future__ import annotations

import pytest

from rapo_jax.plan.chips import slices


def test_a_slice_has_the_product_of_its_sides_as_chips():
    (found,) = slices("v5p:2x2x4")
    assert (found.chips, found.name, found.chip.name) == (16, "v5p:2x2x4", "TPU v5p")
    (gpus,) = slices("h100x8")
    assert (gpus.chips, gpus.name, gpus.host) == (8, "h100x8", 8)


def test_a_kind_alone_is_all_its_slices_from_the_smallest():
    chips = [found.chips for found in slices("v5e")]
    assert chips == sorted(chips) and chips[0] == 1 and chips[-1] == 256


def test_gpu_is_every_kind_of_gpu():
    assert {found.kind for found in slices("gpu")} == {"h100", "h200"}


def test_a_small_slice_is_one_host():
    assert slices("v5e:1x1")[0].host == 1 and slices("v5e:8x8")[0].host == 4


@pytest.mark.parametrize("topology", ["v9:2x2", "tpu", "x8", "v5e:", "8x8", "h300x8"])
def test_an_unknown_kind_is_refused_with_a_list_of_known_ones(topology):
    with pytest.raises(ValueError, match=f"plan.topology='{topology}': .*v5e.*h100"):
        slices(topology)


@pytest.mark.parametrize(
    ("topology", "works"),
    [("v5e:3x5", "v5e:4x4"), ("v5p:4x4", "v5p:4x4x4"), ("h100x3", "h100x4"), ("v5e:x", "v5e:1x1")],
)
def test_an_unknown_shape_is_refused_with_a_list_of_known_ones(topology, works):
    with pytest.raises(ValueError, match=f"plan.topology='{topology}': .*{works}"):
        slices(topology)


def test_only_the_usable_part_of_a_gpu_counts():
    assert slices("h100x1")[0].usable == 0.9 * 80e9 and slices("v5e:1x1")[0].usable == 16e9

"""Meshes of chips that this machine does not have, for which programs can be compiled all the same.

TPUs are known to libtpu by the name of their slice. XLA compiles for a GPU from a description of
it; cuDNN's kernels are calls of a library then, which nothing checks before they run.
"""

from __future__ import annotations

import jax
from jax.sharding import Mesh

from rapo_jax.model.sharding import make_mesh
from rapo_jax.plan.chips import Slice
from rapo_jax.plan.shapes import Split

# Of both, OpenXLA, xla/backends/gpu/target_config/specs/h100_sxm.txtpb and h200.txtpb.
_HOPPER = """
gpu_device_info {{
  cuda_compute_capability {{ major: 9 feature_extension: ACCELERATED_FEATURES }}
  core_count: 132 fpus_per_core: 128 clock_rate_ghz: 1.98 l2_cache_size: 52428800
  threads_per_warp: 32 threads_per_block_limit: 1024 threads_per_core_limit: 2048
  block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
  shared_memory_per_block: 49152 shared_memory_per_block_optin: 232448
  shared_memory_per_core: 233472
  registers_per_core_limit: 65536 registers_per_block_limit: 65536
  device_memory_size: {memory} memory_bandwidth: {bandwidth}
}}
platform_name: "CUDA"
runtime_version {{ major: 12 minor: 9 }}
dnn_version_info {{ major: 9 minor: 10 }}
device_description_str: "{name}"
"""
DESCRIPTIONS = {
    "h100": _HOPPER.format(
        memory=84_942_979_072, bandwidth=3_352_320_000_000, name="NVIDIA H100 80GB HBM3"
    ),
    "h200": _HOPPER.format(
        memory=151_397_597_184, bandwidth=4_800_000_000_000, name="NVIDIA H200 141GB HBM3e"
    ),
}
"""Kind of GPU -> what XLA must know of it, a GpuTargetConfigProto in text format."""

LIBRARIES = {"tpu": "libtpu", "gpu": "jax's CUDA plugin"}


def slice_mesh(chips: Slice, split: Split) -> Mesh:
    """The mesh of a slice, made of devices that can only be compiled for.

    Raises:
        ValueError: libtpu or jax's CUDA plugin is missing, or does not know the slice.
    """
    return make_mesh(_devices(chips), data=1, fsdp=split.fsdp, tensor=split.tensor)


def _devices(chips: Slice) -> list[jax.Device]:
    from jax.experimental import topologies

    platform = chips.chip.platform
    try:
        if platform == "tpu":
            return topologies.get_topology_desc(chips.name, platform="tpu").devices
        return topologies.get_topology_desc(
            platform="cuda",
            target_config=DESCRIPTIONS[chips.kind],
            topology=f"1x{chips.chips // chips.host}x{chips.host}",
        ).devices
    except Exception as error:  # its type depends on the version: missing module, failed plugin
        text = str(error).splitlines()[0] if str(error) else type(error).__name__
        library = LIBRARIES[platform]
        known = "INVALID_ARGUMENT" in text
        raise ValueError(
            f"plan.topology={chips.name!r}: {library} does not know it ({text})"
            if known
            else f"plan.topology={chips.name!r}: plan.compile needs {library}, which does not load "
            f"here ({text}); bash launch/plan.sh makes an environment with it"
        ) from error

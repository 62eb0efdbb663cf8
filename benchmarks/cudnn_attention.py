"""What cuDNN says of a model's attention on an H100, on a machine without a GPU.

    pip install '.[cuda]' -c requirements.lock && pip install nvidia-cudnn-frontend==1.32.0
    python benchmarks/cudnn_attention.py [--model=Qwen2.5-7B] [--tensor=1] [--rows=8]

cuDNN chooses kernels from a description of a GPU (since 9.8). So each attention of a run is built
as XLA builds it, for compute capability 9.0 and bfloat16: a tick of decoding, the prompts, and both
passes of an update. Prints whether cuDNN accepts it and its scratch memory, that of the backward
pass beside what plans count (`rapo_jax.plan.arithmetic.cudnn_scratch`). The exit status is 1 if
cuDNN refuses one, or if the two differ by more than a kilobyte.

cuDNN's libraries need the driver's to be loaded. Where there is none, a stand-in is compiled (cc)
whose functions all fail, but for those that ask for the version and the number of GPUs.
"""

from __future__ import annotations

import argparse
import ctypes
import dataclasses
import json
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from configs import qwen7b
from rapo_jax.config import ModelSettings, RolloutSettings
from rapo_jax.config.read import read_settings
from rapo_jax.model.attention import choose
from rapo_jax.plan.arithmetic import cudnn_scratch
from rapo_jax.plan.models import PUBLISHED
from rapo_jax.plan.shapes import Split, shape_on

DRIVER = """
cuCtxGetCurrent cuCtxGetLimit cuCtxPopCurrent cuCtxPushCurrent cuDeviceGet cuGetErrorName
cuGetErrorString cuKernelGetAttribute cuKernelGetFunction cuKernelSetAttribute
cuLaunchCooperativeKernel cuLaunchKernel cuLaunchKernelEx cuLibraryGetKernel cuLibraryLoadData
cuLibraryLoadFromFile cuLibraryUnload cuLinkAddData cuLinkComplete cuLinkCreate cuLinkDestroy
cuModuleGetFunction cuModuleLoadData cuModuleUnload cuOccupancyMaxPotentialClusterSize
cuStreamGetCtx cuTensorMapEncodeIm2col cuTensorMapEncodeTiled
"""
"""Functions of the driver that cuDNN 9.28 looks up."""
NO_DEVICE = 100

# OpenXLA, xla/backends/gpu/target_config/specs/h100_sxm.txtpb, in cuDNN's names.
H100 = {
    "deviceVer": 900, "multiProcessorCount": 132, "warpSize": 32,
    "maxSharedMemoryPerBlock": 49152, "maxSharedMemoryPerBlockOptin": 232448,
    "reservedSharedMemoryPerBlock": 1024, "maxRegistersPerSM": 65536, "maxCtasPerSM": 32,
    "maxThreadsPerBlock": 1024, "maxThreadsPerSM": 2048, "regsPerBlock": 65536,
    "totalGlobalMem": 84942979072, "smClockRateKHz": 1980000, "l2CacheSize": 52428800,
    "maxBlockSize": [1024, 1024, 64], "memClockRateKHz": 2619000,
    "maxGridSize": [2147483647, 65535, 65535], "supportCoopLaunch": 1, "pciDeviceId": 0,
    "memoryBusWidth": 5120, "isTccDriver": 0, "cudaDeviceId": 0, "driverVer": 13000,
    "deviceName": "NVIDIA H100 80GB HBM3",
}  # fmt: skip


def load_driver() -> None:
    """The driver's library, or a stand-in; libraries that name it find what is loaded."""
    try:
        ctypes.CDLL("libcuda.so.1", mode=ctypes.RTLD_GLOBAL)
        return
    except OSError:
        print("no driver here: a stand-in takes its place", file=sys.stderr)
    source = "".join(f"int {name}(void) {{ return {NO_DEVICE}; }}\n" for name in DRIVER.split())
    source += "int cuDriverGetVersion(int *v) { *v = 13000; return 0; }\n"
    source += "int cuDeviceGetCount(int *n) { *n = 0; return 0; }\n"
    with tempfile.TemporaryDirectory() as folder:
        library = Path(folder) / "libcuda.so.1"
        command = ["cc", "-shared", "-fPIC", "-Wl,-soname,libcuda.so.1", "-o", str(library)]
        subprocess.run([*command, "-xc", "-"], input=source, text=True, check=True)
        ctypes.CDLL(str(library), mode=ctypes.RTLD_GLOBAL)


class Graphs:
    """Attention as graphs of cuDNN; arrays have the axes BTNH, as jax passes them."""

    def __init__(self, cudnn: ModuleType) -> None:
        self.cudnn, self.types = cudnn, cudnn.data_type
        self.device = cudnn.create_device_properties(json.dumps(H100))

    def _graph(self) -> Any:
        wide = self.types.FLOAT
        return self.cudnn.pygraph(
            io_data_type=self.types.BFLOAT16, intermediate_data_type=wide, compute_data_type=wide,
            device_property=self.device, sm_version=90, sm_count=H100["multiProcessorCount"],
        )  # fmt: skip

    def forward(
        self, B: int, N: int, K: int, T: int, S: int, H: int, *, causal: bool, train: bool
    ) -> int:
        """Scratch memory of T queries over S keys; without `causal`, over as many as a row has."""
        g, ints = self._graph(), self.types.INT32
        query, key, value = (g.tensor(**_array(B, *s, H)) for s in ((T, N), (S, K), (S, K)))
        lengths = {} if causal else {
            "use_padding_mask": True,
            "seq_len_q": g.tensor(dim=[B, 1, 1, 1], stride=[1, 1, 1, 1], data_type=ints),
            "seq_len_kv": g.tensor(dim=[B, 1, 1, 1], stride=[1, 1, 1, 1], data_type=ints),
        }  # fmt: skip
        mixed, sums = g.sdpa(
            q=query, k=key, v=value, attn_scale=H**-0.5, use_causal_mask=causal,
            generate_stats=train, **lengths,
        )  # fmt: skip
        _result(mixed, B, T, N, H)
        if train:
            sums.set_output(True).set_data_type(self.types.FLOAT)
        return self._scratch(g)

    def backward(self, B: int, N: int, K: int, T: int, H: int) -> int:
        """Scratch memory of the gradients of causal attention over rows of T."""
        g = self._graph()
        shapes = ((T, N), (T, K), (T, K), (T, N), (T, N))
        query, key, value, mixed, gradient = (g.tensor(**_array(B, *s, H)) for s in shapes)
        sums = g.tensor(
            dim=[B, N, T, 1], stride=[N * T, T, 1, 1], data_type=self.types.FLOAT
        )  # fmt: skip
        results = g.sdpa_backward(
            q=query, k=key, v=value, o=mixed, dO=gradient, stats=sums, attn_scale=H**-0.5,
            use_causal_mask=True,
        )  # fmt: skip
        for result, heads in zip(results, (N, K, K), strict=True):
            _result(result, B, T, heads, H)
        return self._scratch(g)

    def _scratch(self, g: Any) -> int:
        """Bytes that the chosen kernel asks for.

        Raises:
            Exception: of cuDNN's, if it has no kernel.
        """
        g.validate()
        g.build_operation_graph()
        g.create_execution_plans([self.cudnn.heur_mode.A])
        g.check_support()
        g.build_plans()
        return g.get_workspace_size()


def _array(B: int, T: int, N: int, H: int) -> Mapping[str, list[int]]:
    """cuDNN's dimensions BNTH of an array with the axes BTNH."""
    return {"dim": [B, N, T, H], "stride": [T * N * H, H, N * H, 1]}


def _result(tensor: Any, B: int, T: int, N: int, H: int) -> None:
    shape = _array(B, T, N, H)
    tensor.set_output(True).set_dim(shape["dim"]).set_stride(shape["stride"])


def main() -> int:
    flags = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    flags.add_argument("--model", default="Qwen2.5-7B", choices=PUBLISHED)
    flags.add_argument("--tensor", type=int, default=1, help="ways of tensor parallelism")
    flags.add_argument("--rows", type=int, default=8, help="of a micro-batch of the widest rows")
    given = flags.parse_args()
    s = read_settings(qwen7b.get_config().to_dict() | {"stages": ("plan",)})
    model = PUBLISHED[given.model](dataclasses.replace(s.model, dtype="bfloat16"))
    load_driver()
    import cudnn

    split = Split(fsdp=1, tensor=given.tensor, slots=64, remat="full")
    good = True
    print(f"cuDNN {cudnn.backend_version_string()}, {given.model}, 1 of {given.tensor} chips")
    for name, scratch, planned in attentions(Graphs(cudnn), s.rollout, model, split, given.rows):
        try:
            found = scratch()
        except Exception as error:
            print(f"{name}: refused: {str(error).splitlines()[0][:200]}")
            good = False
            continue
        print(f"{name}: {found:,} bytes of scratch" + (f", planned {planned:,}" if planned else ""))
        good = good and (not planned or abs(found - planned) <= 1024)
    return 0 if good else 1


def attentions(
    graphs: Graphs, rollout: RolloutSettings, model: ModelSettings, split: Split, rows: int
) -> list[tuple[str, Callable[[], int], int]]:
    """Name, what cuDNN says, and what a plan counts, of each attention of a run."""
    N, K, H = model.heads // split.tensor, max(model.kv_heads // split.tensor, 1), model.head_width
    U, T, S = split.slots, rollout.max_tokens, rollout.max_tokens + rollout.absorb_chunk
    shape = shape_on(model, fsdp=split.fsdp, tensor=split.tensor)
    planned = cudnn_scratch(model, shape, split, choose(model, platform="gpu"), rows, T)
    X = rollout.prompt_tokens
    return [
        # the query heads of a kv head are queries of one head, see model/decoding_kernels.py
        (f"tick of {U} slots", lambda: graphs.forward(
            U, K, K, N // K, S, H, causal=False, train=False), 0),
        (f"{rows} prompts of {X}", lambda: graphs.forward(
            rows, N, K, X, X, H, causal=True, train=False), 0),
        (f"update of {rows} x {T}, forward", lambda: graphs.forward(
            rows, N, K, T, T, H, causal=True, train=True), 0),
        ("its backward pass", lambda: graphs.backward(rows, N, K, T, H), int(planned)),
    ]  # fmt: skip


if __name__ == "__main__":
    sys.exit(main())

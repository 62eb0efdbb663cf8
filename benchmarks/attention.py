"""Compares the attention kernels of this platform with plain XLA: differences and times.

    python benchmarks/attention.py [--rows=4 --positions=4096 --heads=28 --kv_heads=4]

Prints a line for plain attention in bfloat16 and for every kernel: the largest difference of its
output and gradients from plain attention in float32, relative to the largest value there, and
milliseconds of a forward and of a forward and backward pass. Then the same of a tick of decoding,
one query in each row of a cache, rows of random length, for every form of the cache. The defaults
are the heads of Qwen2.5-7B. Exit status 1: a kernel's difference is more than twice that of plain
attention.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from rapo_jax.model.attention import KERNELS
from rapo_jax.model.cached_attention import FORMS, attend_cached, padded_positions
from rapo_jax.model.whole_attention import plain

Rows = tuple[jax.Array, jax.Array, jax.Array]
ALLOWED = 2.0


def make_rows(*, rows: int, positions: int, heads: int, kv_heads: int, head_width: int) -> Rows:
    """Queries, keys and values: N(0, 1) in bfloat16."""
    keys = jax.random.split(jax.random.key(0), 3)
    counts = (heads, kv_heads, kv_heads)
    query, key, value = (
        jax.random.normal(k, (rows, positions, count, head_width), jnp.bfloat16)
        for k, count in zip(keys, counts, strict=True)
    )
    return query, key, value


def with_gradient(attend: Callable[..., jax.Array]) -> Callable[..., tuple[jax.Array, ...]]:
    """A function of the output, and the gradients of a sum of it with different weights."""

    def total(*rows: jax.Array) -> tuple[jax.Array, jax.Array]:
        mixed = attend(*rows)
        weight = jnp.cos(jnp.arange(mixed.size, dtype=jnp.float32)).reshape(mixed.shape)
        return (mixed.astype(jnp.float32) * weight).sum(), mixed

    def both(*rows: jax.Array) -> tuple[jax.Array, ...]:
        gradient, mixed = jax.grad(total, argnums=(0, 1, 2), has_aux=True)(*rows)
        return (mixed, *gradient)

    return both


def differences(arrays: tuple[jax.Array, ...], exact: tuple[jax.Array, ...]) -> list[float]:
    """Largest difference of each array, relative to its largest exact value."""
    pairs = [(np.float32(x), np.float32(y)) for x, y in zip(arrays, exact, strict=True)]
    return [float(np.abs(x - y).max() / np.abs(y).max()) for x, y in pairs]


def milliseconds(program: Callable[..., object], *arguments: object, times: int) -> float:
    jax.block_until_ready(program(*arguments))
    started = time.perf_counter()
    for _ in range(times):
        results = program(*arguments)
    jax.block_until_ready(results)
    return 1e3 * (time.perf_counter() - started) / times


def compare(rows: Rows, *, platform: str, times: int) -> dict[str, list[float]]:
    """Name of each implementation -> its differences; prints them with the times."""
    with jax.default_matmul_precision("highest"):
        exact = jax.jit(with_gradient(plain))(*(x.astype(jnp.float32) for x in rows))
    kernels = {name: k.attend for name, k in KERNELS.items() if platform in k.platforms}
    result = {}
    heads = ("output", "d query", "d key", "d value", "ms", "ms, both")
    print(" " * 10 + "".join(f"{head:>10}" for head in heads))
    for name, attend in {"plain": plain, **kernels}.items():
        forward, both = jax.jit(attend), jax.jit(with_gradient(attend))
        result[name] = differences(both(*rows), exact)
        spent = [milliseconds(program, *rows, times=times) for program in (forward, both)]
        print(
            f"{name:<10}"
            + "".join(f"{x:>10.2e}" for x in result[name])
            + f"{spent[0]:>10.2f}{spent[1]:>10.2f}",
            flush=True,
        )
    return result


def compare_decoding(rows: Rows, *, platform: str, times: int) -> dict[str, list[float]]:
    """Name of each form of the cache -> its difference; prints it with the time of a tick."""
    B, T = rows[0].shape[:2]
    length_B = jax.random.randint(jax.random.key(1), (B,), 1, T + 1)
    kernels = [k.form for k in KERNELS.values() if platform in k.platforms]
    result: dict[str, list[float]] = {}

    def tick(
        name: str, rows: Sequence[jax.Array]
    ) -> tuple[Callable[..., jax.Array], tuple[jax.Array, object]]:
        form = FORMS[name]
        more = padded_positions(T, form.page) - T
        padded = [jnp.pad(x, ((0, 0), (0, more), (0, 0), (0, 0))) for x in rows[1:]]
        program = partial(attend_cached, form, row_B=None, start_B=length_B - 1, length_B=length_B)
        return jax.jit(program), (rows[0][:, :1], jax.jit(form.layer)(*padded))

    with jax.default_matmul_precision("highest"):
        program, wide = tick("plain", [x.astype(jnp.float32) for x in rows])
        exact = program(*wide)
    print(f"{'decoding':<10}{'output':>10}{'ms':>10}")
    for name in ("plain", "blocks", *kernels):
        program, arguments = tick(name, rows)
        result[name] = differences((program(*arguments),), (exact,))
        spent = milliseconds(program, *arguments, times=times)
        print(f"{name:<10}{result[name][0]:>10.2e}{spent:>10.2f}", flush=True)
    return result


def off_bound(result: dict[str, list[float]]) -> list[str]:
    """Names whose differences are more than ALLOWED times those of plain attention."""
    bound = [ALLOWED * x for x in result["plain"]]
    return [
        name for name, off in result.items() if any(x > y for x, y in zip(off, bound, strict=True))
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    defaults = {"rows": 4, "positions": 4096, "heads": 28, "kv_heads": 4, "head_width": 128}
    for name, value in {**defaults, "times": 10}.items():
        parser.add_argument(f"--{name}", type=int, default=value)
    given = vars(parser.parse_args())
    times = given.pop("times")
    device = jax.devices()[0]
    print(f"{device.device_kind}, jax {jax.__version__}; {given}; bfloat16")
    rows = make_rows(**given)
    result = compare(rows, platform=device.platform, times=times)
    decoding = compare_decoding(rows, platform=device.platform, times=times)
    if bad := off_bound(result) + off_bound(decoding):
        raise SystemExit(f"differ more than {ALLOWED} times plain attention: {', '.join(bad)}")
    if len(result) == 1:
        print(f"there is no kernel for {device.platform}: model.attention='auto' is plain here")


if __name__ == "__main__":
    main()

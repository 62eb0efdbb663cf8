"""Measures the Python tool: latency of one call, and calls per second of all workers.

    python benchmarks/python_tool.py [--calls 500] [--workers 2]

Prints a line for each program, and the machine with its load: other load makes times longer.
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from rapo_jax.tools.sandbox.pool import PythonTool, python_tool

PROGRAMS = ("print(1+1)", "import numpy\nprint(numpy.ones(3).sum())")


def machine() -> str:
    """Processor, cores, kernel, Python and load, in one line."""
    model = platform.processor() or platform.machine()
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        model = next(line.split(":")[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration, IndexError):
        pass
    load = ", ".join(f"{value:.1f}" for value in os.getloadavg())
    return (
        f"{model}, {os.cpu_count()} cores, {platform.system()} {platform.release()}, "
        f"Python {platform.python_version()}, load {load}"
    )


def measure(tool: PythonTool, program: str, calls: int) -> str:
    """Latencies of `calls` calls one by one, then the rate of a batch of as many."""
    tool([program] * 8)  # warm-up
    took_s = []
    for _ in range(calls):
        start = time.perf_counter()
        tool([program])
        took_s.append(time.perf_counter() - start)
    start = time.perf_counter()
    observations = tool([program] * calls)
    rate = calls / (time.perf_counter() - start)
    wrong = sum(observation.outcome != "ok" for observation in observations)
    parts = statistics.quantiles(took_s, n=10)
    return (
        f"latency ms: least {1e3 * min(took_s):.1f}, 10% {1e3 * parts[0]:.1f}, "
        f"median {1e3 * statistics.median(took_s):.1f}, 90% {1e3 * parts[-1]:.1f}; "
        f"{rate:.0f} calls/s" + (f"; {wrong} calls FAILED" if wrong else "")
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--calls", type=int, default=500)
    parser.add_argument("--workers", type=int, default=2)
    flags = parser.parse_args()
    print(machine())
    start = time.perf_counter()
    tool = python_tool(workers=flags.workers, timeout_s=10.0, memory_mb=512, output_chars=2000)
    print(f"{flags.workers} workers, warm after {time.perf_counter() - start:.2f} s")
    print(f"layers missing: {', '.join(tool.missing_layers) or 'none'}")
    for program in PROGRAMS:
        print(f"{program!r}: {measure(tool, program, flags.calls)}")
    tool.close()
    print(f"load after: {os.getloadavg()[0]:.1f}")


if __name__ == "__main__":
    main()

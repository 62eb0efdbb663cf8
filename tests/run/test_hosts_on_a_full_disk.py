"""Two processes save a checkpoint; one of them cannot write, and both end."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
PATIENCE_S = 300  # in a background thread, the other process waited for 1,200 s
PROGRAM = """
import resource, sys
from pathlib import Path
import jax, jax.numpy as jnp
from rapo_jax import distributed
from rapo_jax.config import DistributedSettings
from rapo_jax.model.sharding import make_mesh, place, replicated, rows
from rapo_jax.run.checkpoint import Checkpoints
from rapo_jax.types import TrainState

folder, port, number = sys.argv[1:]
distributed.start(DistributedSettings("explicit", f"localhost:{port}", 2, int(number)))
try:
    mesh = make_mesh(None, data=2)
    x = jax.random.normal(jax.random.key(0), (2, 1 << 16))
    store = Checkpoints(Path(folder), keep=2)
    if number == "1":
        resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 14, 1 << 14))  # its part has 256 KiB
    x, step = place(x, rows(mesh)), place(jnp.int32(1), replicated(mesh))
    store.save(1, TrainState({"x": x}, (), step), {})
    print("saved", flush=True)
except Exception:
    distributed.leave(1)
    raise
"""


def test_a_process_that_cannot_write_its_part_of_a_checkpoint_ends_the_others_too(tmp_path):
    with socket.socket() as listening:
        listening.bind(("localhost", 0))
        port = listening.getsockname()[1]
    flags = {"XLA_FLAGS": "--xla_force_host_platform_device_count=1", "PYTHONPATH": str(ROOT)}
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", PROGRAM, str(tmp_path / "checkpoints"), str(port), str(number)],
            env=os.environ | flags,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for number in range(2)
    ]
    try:
        printed = [process.communicate(timeout=PATIENCE_S)[0] for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert "File too large" in printed[1]
    assert all(process.returncode for process in processes)
    assert not any("saved" in text for text in printed)
    assert not (tmp_path / "checkpoints" / "1").exists()

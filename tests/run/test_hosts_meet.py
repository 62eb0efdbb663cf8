"""Processes that cannot find each other end with one line, before JAX would end them."""

from __future__ import annotations

import socket

import pytest

from rapo_jax import distributed
from rapo_jax.config import DistributedSettings


@pytest.fixture
def taken():
    """A port on which somebody listens."""
    with socket.socket() as listening:
        listening.bind(("", 0))
        listening.listen()
        yield listening.getsockname()[1]


def free_port():
    with socket.socket() as listening:
        listening.bind(("", 0))
        return listening.getsockname()[1]


def test_a_port_that_is_taken_is_refused_by_process_0(taken):
    settings = DistributedSettings("explicit", f"localhost:{taken}", 2, 0)
    message = rf"^distributed.coordinator='localhost:{taken}': process 0 cannot listen there \("
    with pytest.raises(ValueError, match=message):
        distributed.start(settings)


def test_a_process_0_that_does_not_answer_is_waited_for_and_then_named(monkeypatch, capsys):
    monkeypatch.setattr(distributed, "JOIN_S", 1.0)
    address = f"localhost:{free_port()}"
    with pytest.raises(ValueError, match=rf"coordinator='{address}': process 0 does not answer"):
        distributed.start(DistributedSettings("explicit", address, 2, 1))
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"[hosts] waiting for process 0 at {address} (")


def test_process_1_goes_on_when_process_0_listens(taken, capsys):
    distributed._find_coordinator(DistributedSettings("explicit", f"localhost:{taken}", 2, 1))
    assert capsys.readouterr().err == ""

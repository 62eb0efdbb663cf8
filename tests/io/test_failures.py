"""What is a refused value, and what a failure of the machine."""

from __future__ import annotations

import errno

import pytest

from rapo_jax.io.failures import end_of


def text_of(number):
    return str(OSError(number, "reason", "file"))


@pytest.mark.parametrize(
    ("error", "status", "remedy"),
    [
        ("rl.m=-1.0: must be at least 0", 2, ""),
        ("UNKNOWN: is no task", 1, ""),
        (text_of(errno.ENOENT), 2, ""),
        (text_of(errno.EACCES), 2, ""),
        (text_of(errno.EIO), 1, ""),
        (text_of(errno.ENOSPC), 1, "free space on its disk"),
        (
            'RESOURCE_EXHAUSTED: Failed writing: "/w/checkpoints": No space left on device',
            1,
            "free space on its disk",
        ),
        (
            "UNKNOWN: Gloo AllGather failed: [pair.cc:547] Connection closed by peer [::1]:15744",
            1,
            "another process has ended, and its log says why",
        ),
    ],
)
def test_a_failure_of_the_machine_exits_with_1_and_a_refused_value_with_2(error, status, remedy):
    added, found = end_of(error)
    assert found == status
    assert added == (f"; {remedy}, then run the same command again" if remedy else "")

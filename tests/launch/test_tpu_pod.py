"""tpu_pod and tpu_worker: whole runs on a simulated slice of two workers."""

from __future__ import annotations

import os
import signal
import subprocess

import pytest

from tests.launch.slices import FLAGS, ODD, end, pod, wait_for

# A setsid that becomes its program after half a second.
LATE = r"""#!/bin/bash
{ echo sleep .5; printf 'exec /usr/bin/setsid'; printf ' %q' "$@"; } >"$HOME/late"
exec bash "$HOME/late"
"""


def test_a_tpu_run_is_the_same_command_on_all_workers_in_one_folder_and_comes_back(cloud):
    end(cloud, 0, 0)
    end(cloud, 1, 0)
    done = cloud.run(*pod())
    assert done.returncode == 0, done.stderr
    results = cloud.repository / "runs" / "x"
    for worker in (0, 1):
        flags = (results / f"flags-{worker}").read_text().splitlines()
        assert flags == ["--config.distributed.mode=auto", *FLAGS, ODD]
        assert (results / "launch" / f"worker-{worker}.exit").read_text() == "0\n"
        assert "a step" in (results / "launch" / f"worker-{worker}.log").read_text()
    assert (cloud.cloud / "homes" / "1" / "rapo_jax" / "runs").is_symlink()
    assert "the slice stays, and costs money; to delete it: gcloud " in done.stderr
    assert not any(" delete " in call for call in cloud.calls())


def test_a_slash_at_the_end_of_the_workdir_changes_nothing(cloud):
    end(cloud, 0, 0)
    end(cloud, 1, 0)
    done = cloud.run(*pod("--delete"), "--workdir=runs/x/")
    assert done.returncode == 0, done.stderr
    assert (cloud.repository / "runs/x/launch/worker-1.exit").read_text() == "0\n"
    assert " delete rapo" in cloud.calls()[-1]
    refused = cloud.run(*pod(), "--workdir=runs/")
    assert refused.returncode == 2 and "give a path below runs/" in refused.stderr


def test_a_failed_tpu_run_is_fetched_and_its_status_passed_on_and_then_the_slice_is_deleted(cloud):
    end(cloud, 0, 0)
    end(cloud, 1, 3)
    done = cloud.run(*pod("--delete"))
    assert done.returncode == 3, done.stderr
    assert (cloud.repository / "runs/x/launch/worker-1.exit").read_text() == "3\n"
    assert " delete rapo" in cloud.calls()[-1]


def test_a_slice_whose_results_were_not_fetched_is_not_deleted(cloud):
    end(cloud, 0, 0)
    end(cloud, 1, 0)
    done = cloud.run(*pod("--delete"), NO_WAY_BACK="yes")
    assert done.returncode == 1 and "nothing is deleted" in done.stderr
    assert (cloud.cloud / "homes" / "0" / "rapo_jax" / "runs" / "x" / "steps-0").exists()
    again = cloud.run(*pod("--delete"))
    assert again.returncode == 0 and (cloud.repository / "runs/x/steps-0").exists()


def test_a_run_survives_its_launcher_and_the_same_command_waits_for_it_again(cloud):
    def launch(name):
        with open(cloud.tmp_path / name, "w") as log:
            return subprocess.Popen(
                cloud.line(*pod()), env=cloud.environment, cwd=cloud.repository, stdout=log,
                stderr=log, stdin=subprocess.DEVNULL, start_new_session=True,
            )  # fmt: skip

    first = launch("first")
    there = cloud.cloud / "homes" / "0" / "rapo_jax" / "runs" / "x"
    wait_for(lambda: len(list(there.glob("steps-*"))) == 2)
    os.killpg(first.pid, signal.SIGKILL)
    first.wait()
    again = launch("again")
    wait_for(lambda: "waiting for its end" in (cloud.tmp_path / "again").read_text())
    end(cloud, 0, 0)
    end(cloud, 1, 0)
    assert again.wait(60) == 0
    for worker in (0, 1):
        steps = cloud.repository / "runs" / "x" / f"steps-{worker}"
        assert len(steps.read_text().splitlines()) == 1
    assert sum("rapo_jax.tgz" in call and " scp " in call for call in cloud.calls()) == 1


def test_the_states_of_workers_are_printed_once_in_whichever_order_they_answer(cloud):
    with open(cloud.tmp_path / "out", "w") as out:
        run = subprocess.Popen(
            cloud.line(*pod()), env=cloud.environment | {"SHUFFLED": "yes"}, cwd=cloud.repository,
            stdout=out, stderr=subprocess.DEVNULL, stdin=subprocess.DEVNULL,
        )  # fmt: skip
    wait_for(lambda: sum(" state " in call for call in cloud.calls()) > 8)
    end(cloud, 0, 0)
    end(cloud, 1, 0)
    assert run.wait(60) == 0
    lines = (cloud.tmp_path / "out").read_text().splitlines()
    states = [line for line in lines if line.startswith("worker ") and "started" not in line]
    blocks = list(zip(states[::2], states[1::2], strict=True))
    assert all(zero.startswith("worker 0") for zero, one in blocks)
    assert all(one != two for one, two in zip(blocks, blocks[1:], strict=False))


def test_workers_that_wait_for_a_failed_one_are_ended(cloud):
    end(cloud, 1, 3)
    done = cloud.run(*pod())
    assert done.returncode == 3, done.stderr
    ended = (cloud.repository / "runs/x/launch/worker-0.exit").read_text()
    assert int(ended) == 128 + signal.SIGTERM


def test_a_new_slice_continues_from_the_results_fetched_from_the_last_one(cloud):
    end(cloud, 0, 0)
    end(cloud, 1, 0)
    for runs in (1, 2):
        done = cloud.run(*pod("--delete"))
        assert done.returncode == 0, done.stdout + done.stderr
        steps = cloud.repository / "runs" / "x" / "steps-0"
        assert len(steps.read_text().splitlines()) == runs
    before = cloud.repository / "runs" / "x.before" / "steps-0"
    assert len(before.read_text().splitlines()) == 1


def test_a_run_that_is_slow_to_start_its_program_is_not_taken_as_ended(cloud):
    cloud.add("setsid", LATE)
    end(cloud, 0, 0)
    end(cloud, 1, 0)
    done = cloud.run(*pod("--delete"))
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize(
    "slice_env, status, message",
    [
        ({"STATE": "PREEMPTED"}, 1, "the slice rapo is PREEMPTED"),
        ({"KIND": "v4-8"}, 2, "the slice rapo exists and is a v4-8"),
    ],
)
def test_a_slice_that_cannot_be_used_is_left_alone(cloud, slice_env, status, message):
    (cloud.cloud / "homes").mkdir()
    done = cloud.run(*pod("--delete"), **slice_env)
    assert done.returncode == status and message in done.stderr
    assert [call.split()[4] for call in cloud.calls()] == ["list"]


def test_a_failure_of_gcloud_is_not_taken_as_a_missing_slice(cloud):
    cloud.add("gcloud", "exit 1\n")
    assert cloud.run(*pod()).returncode != 0
    assert [call.split()[4] for call in cloud.calls()] == ["list"]

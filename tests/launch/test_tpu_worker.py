"""tpu_worker on one worker: which run is there, how it is ended, and the folder that all share."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
from pathlib import Path

import pytest

from tests.launch.slices import FLAGS, SLICE, wait_for

OTHER = (FLAGS[0], "--workdir=runs/y")
# A program that takes no notice of SIGTERM.
DEAF = """#!/bin/bash
case "$*" in
  -c*) echo ok ;;
  "-m rapo_jax.main "*) trap '' TERM; touch "$CLOUD/deaf"; exec /bin/sleep 300 ;;
esac
"""


@pytest.fixture
def worker(cloud):
    """Calls of tpu_worker as worker 0, on a machine where it has been set up."""
    python = cloud.repository / ".venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text(cloud.python)
    python.chmod(0o755)
    cloud.environment |= {"WORKER": "0"}
    yield lambda *words: cloud.run("tpu_worker", *words)
    with contextlib.suppress(OSError, ValueError):
        os.killpg(process_of(cloud), signal.SIGKILL)


def process_of(cloud):
    """The process of the last run, its own group."""
    process = int((cloud.repository / ".run").read_text().split()[0])
    assert os.getpgid(process) == process
    return process


def state_of(worker, workdir="runs/x"):
    done = worker("state", workdir)
    assert done.returncode == 0, done.stderr
    return done.stdout.partition(" | ")[0].strip()


def test_a_process_that_has_the_number_of_an_earlier_run_is_not_taken_for_it(cloud, worker):
    with subprocess.Popen(["/bin/sleep", "60"], start_new_session=True) as other:
        fields = Path(f"/proc/{other.pid}/stat").read_text().rpartition(")")[2].split()
        born = fields[21 - 2]  # field 22 of the file, the third is the first of these
        (cloud.repository / "runs/x/launch").mkdir(parents=True)
        (cloud.repository / "runs/x/launch/worker-0.log").touch()
        ended = "worker 0: ended 1 without an exit status: killed, or the machine was restarted"
        for time, state in ((born, "worker 0: running"), (f"{born}1", ended)):
            (cloud.repository / ".run").write_text(f"{other.pid}\n{time}\nruns/x\n")
            assert state_of(worker) == state
        other.kill()


def test_a_run_that_a_signal_to_all_its_processes_ends_leaves_its_status(cloud, worker):
    assert worker("start", *FLAGS).stdout == "worker 0: started\n"
    wait_for((cloud.repository / "runs/x/steps-0").exists)
    os.killpg(process_of(cloud), signal.SIGTERM)
    wait_for(lambda: "running" not in state_of(worker))
    assert state_of(worker) == f"worker 0: ended {128 + signal.SIGTERM}"


def test_a_run_in_one_workdir_is_neither_ended_nor_replaced_by_calls_for_another(cloud, worker):
    worker("start", *FLAGS)
    wait_for((cloud.repository / "runs/x/steps-0").exists)
    refused = worker("start", *OTHER)
    assert refused.returncode == 2 and "busy with runs/x" in refused.stderr
    assert worker("stop", "runs/y").returncode == 0
    assert state_of(worker, "runs/y") == "worker 0: busy with runs/x"
    assert state_of(worker) == "worker 0: running"
    assert worker("stop", "runs/x").returncode == 0
    assert state_of(worker) == f"worker 0: ended {128 + signal.SIGTERM}"


def test_a_slice_at_work_on_another_run_is_left_alone(cloud):
    homes = [cloud.cloud / "homes" / str(k) / "rapo_jax" for k in (0, 1)]
    for home in homes:
        (home / "launch").mkdir(parents=True)
        script = home / "launch" / "tpu_worker.sh"
        script.write_text('echo "worker $WORKER: busy with runs/y"\n')
    done = cloud.run("tpu_pod", *SLICE, "--poll=0", "--delete", "--", *FLAGS)
    assert done.returncode == 2 and "the slice runs another job: worker 0: busy" in done.stderr
    assert [call.split()[4] for call in cloud.calls()] == ["list", "ssh"]


def test_a_run_that_does_not_end_when_asked_is_killed_after_two_minutes(cloud, worker):
    (cloud.repository / ".venv/bin/python").write_text(DEAF)
    cloud.add("sleep")
    worker("start", *FLAGS)
    wait_for((cloud.cloud / "deaf").exists)
    assert worker("stop", "runs/x").returncode == 0
    assert cloud.calls() == ["sleep 1"] * 120
    assert state_of(worker).startswith("worker 0: ended 1 without an exit status")


def test_a_worker_without_the_shared_folder_is_not_set_up(cloud, worker):
    cloud.add("uv")
    cloud.add("sleep")
    cloud.add("mount.nfs")
    cloud.add("sudo", 'if [ "$1" = mount ]; then exit 32; fi\n')
    done = worker("setup", "server:/runs")
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1] == "tpu_worker: server:/runs could not be mounted on runs"
    assert cloud.calls().count("sudo mount -t nfs server:/runs runs") == 60


def test_a_worker_that_cannot_read_its_place_in_the_slice_does_nothing(cloud, worker):
    for broken in ("agent-worker-number", "worker-network-endpoints"):
        page = 'case " $* " in *" --fail "*) exit 22 ;; *) echo not:found:0 ;; esac'
        answer = f'case "$*" in *{broken}) {page} ;; *) echo 0:0:0 ;; esac'
        cloud.add("curl", f"#!/bin/bash\n{answer}\n")
        done = worker("start", *FLAGS)
        assert done.returncode != 0 and done.stdout == "", broken
        assert not (cloud.repository / ".run").exists()

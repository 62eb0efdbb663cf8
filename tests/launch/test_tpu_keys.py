"""tpu_pod: variables and extras for the workers, and the key with which gcloud reaches them."""

from __future__ import annotations

import contextlib
import subprocess
from pathlib import Path

import pytest

from tests.launch.slices import end, pod, wait_for

SECRET = """a "key" with 'quotes', $HOME and `ls`; s3cr3t"""


def homes(cloud):
    return [cloud.cloud / "homes" / str(k) for k in (0, 1)]


def test_a_variable_reaches_every_worker_and_its_value_is_in_no_command_log_or_file_left(cloud):
    begins = '"-m rapo_jax.main "*)'
    recording = f'{begins}\n    printenv SERPER_API_KEY >"$CLOUD/key-$WORKER"'
    cloud.add("python3", cloud.python.replace(begins, recording))
    seen = "stat -c %a ../rapo_jax.env >../mode; printenv SERPER_API_KEY >../prepared"
    flags = ("--env=SERPER_API_KEY", f"--prepare={seen}")
    environment = cloud.environment | {"SERPER_API_KEY": SECRET}
    with open(cloud.tmp_path / "out", "w") as out:
        run = subprocess.Popen(
            cloud.line(*pod(*flags)), env=environment, cwd=cloud.repository,
            stdout=out, stderr=out, stdin=subprocess.DEVNULL,
        )  # fmt: skip
    wait_for(lambda: len(list(cloud.cloud.glob("key-*"))) == 2)
    assert not any("s3cr3t" in line for line in command_lines())
    assert not any((home / "rapo_jax.env").exists() for home in homes(cloud))
    end(cloud, 0, 0)
    end(cloud, 1, 0)
    assert run.wait(60) == 0
    for worker, home in enumerate(homes(cloud)):
        assert (cloud.cloud / f"key-{worker}").read_text() == f"{SECRET}\n"
        assert (home / "prepared").read_text() == f"{SECRET}\n"
        assert (home / "mode").read_text() == "600\n"
        (home / "prepared").unlink()
        (cloud.cloud / f"key-{worker}").unlink()
    written = [path for path in cloud.tmp_path.rglob("*") if path.is_file()]
    assert cloud.tmp_path / "out" in written and cloud.calls_file in written
    assert [path for path in written if b"s3cr3t" in path.read_bytes()] == []


def command_lines():
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            yield path.read_text(errors="replace")


def test_a_variable_is_removed_from_the_workers_where_the_run_does_not_start(cloud):
    flags = ("--env=SERPER_API_KEY", "--prepare=ls ../rapo_jax.env; false")
    done = cloud.run(*pod(*flags), SERPER_API_KEY=SECRET)
    assert done.returncode != 0 and "rapo_jax.env" in done.stdout
    assert [path for path in cloud.tmp_path.rglob("rapo_jax.env")] == []


def test_extras_are_installed_on_the_workers(cloud):
    end(cloud, 0, 0)
    end(cloud, 1, 0)
    cloud.add("uv")
    done = cloud.run(*pod("--extra=wandb", "--extra=mcp"))
    assert done.returncode == 0, done.stderr
    installed = [call for call in cloud.calls() if call.startswith("uv pip install")]
    wanted = "-r requirements-tpu.txt -r requirements-wandb.txt -r requirements-mcp.txt"
    assert len(installed) == 2 and all(wanted in call for call in installed)


@pytest.mark.parametrize(
    ("agent", "made", "message"),
    [
        ({"AGENT": "SHA256:other"}, True, "ssh-agent does not hold {key}"),
        ({"AGENT": ""}, True, "ssh-agent does not hold {key}"),
        ({"AGENT": "SHA256:other"}, False, "there is no key {key}"),
    ],
)
def test_no_slice_is_made_that_gcloud_could_not_reach(cloud, agent, made, message):
    key = cloud.tmp_path / ".ssh" / "google_compute_engine"
    key.parent.mkdir()
    if made:
        key.write_text("SHA256:mine")
    done = cloud.run(*pod(), **agent)
    (line,) = done.stderr.splitlines()
    assert done.returncode == 2 and message.format(key=key) in line
    assert line.endswith(f"ssh-add {key}")
    assert [call.split()[4] for call in cloud.calls()] == ["list"]


@pytest.mark.parametrize(
    ("agent", "flags", "said"),
    [
        ({"AGENT": "SHA256:other SHA256:mine"}, (), ""),
        ({"AGENT": "SHA256:yours"}, ("--ssh=--ssh-key-file={folder}/yours",), ""),
        ({"AGENT": "SHA256:other"}, ("--type=v5litepod-8",), ""),
        ({}, (), "no ssh-agent is running"),
    ],
)
def test_a_slice_is_made_where_gcloud_can_reach_it(cloud, agent, flags, said):
    folder = cloud.tmp_path / ".ssh"
    folder.mkdir()
    for name in ("google_compute_engine", "yours"):
        print_of = {"yours": "SHA256:yours"}.get(name, "SHA256:mine")
        (folder / name).write_text(print_of)
    cloud.add(
        "gcloud", '#!/bin/bash\nif [ "$4" = create ]; then echo made >"$CLOUD/made"; exit 9; fi'
    )
    done = cloud.run(*pod(*(flag.format(folder=folder) for flag in flags)), **agent)
    assert (cloud.cloud / "made").exists(), done.stderr
    lines = done.stderr.splitlines()
    assert len(lines) == bool(said) and all(said in line for line in lines)

"""Environment variables (--env) and optional requirements (--extra) that a run needs elsewhere."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

from tests.launch.slices import FLAGS, SLICE

ROOT = Path(__file__).resolve().parents[2]
FAR = [("docker", ()), ("tpu_pod", SLICE)]
SECRET = {"SERPER_API_KEY": "s3cr3t", "HF_TOKEN": "s3cr3t"}


def test_a_container_gets_variables_by_name_and_not_by_value(place):
    flags = ("--env=SERPER_API_KEY", "--env=HF_TOKEN")
    *_, run = place.dry("docker", *flags, "--", *FLAGS, **SECRET)
    assert run[:2] == ["docker", "run"]
    assert run[run.index("--env=USER=rapo") + 2 :] == [*flags, "rapo_jax", *FLAGS]
    assert place.run("docker", *flags, "--", *FLAGS, **SECRET).returncode == 0
    assert "s3cr3t" not in "".join(place.calls()) and "--env=HF_TOKEN" in place.calls()[-1]


def test_a_memory_fraction_by_its_older_name_replaces_that_of_the_image(place):
    older = "XLA_PYTHON_CLIENT_MEM_FRACTION"
    *_, run = place.dry("docker", f"--env={older}", "--", *FLAGS, **{older: ".5"})
    assert run[run.index(f"--env={older}") + 1] == "--env=XLA_CLIENT_MEM_FRACTION="


def test_a_slice_gets_variables_in_a_file_before_its_preparation_and_start(place):
    flags = ("--env=SERPER_API_KEY", "--env=HF_TOKEN", "--prepare=hf download x")
    done = place.run("tpu_pod", "--dry-run", *SLICE, *flags, "--", *FLAGS, **SECRET)
    assert done.returncode == 0 and "s3cr3t" not in done.stdout + done.stderr
    lines = done.stdout.splitlines()
    (said,) = (k for k, line in enumerate(lines) if "SERPER_API_KEY HF_TOKEN" in line)
    make, copy, remove, prepare, start = lines[said + 1 : said + 6]
    assert "install -m 600 /dev/null rapo_jax.env" in make
    assert " scp KEYS/rapo_jax.env rapo:rapo_jax.env --worker=all" in copy
    assert remove == "rm -r KEYS"
    assert "'--command=cd rapo_jax && . ../rapo_jax.env && hf download x'" in prepare
    assert "tpu_worker.sh start" in start


def test_the_start_on_a_worker_reads_the_variables_and_removes_their_file(place):
    words = place.dry("tpu_worker", "start", *FLAGS)
    assert words[:2] == [["source", "../rapo_jax.env"], ["rm", "../rapo_jax.env"]]


@pytest.mark.parametrize(("script", "flags"), FAR)
@pytest.mark.parametrize(
    ("flag", "message"),
    [
        ("--env=SERPER_API_KEY", "--env=SERPER_API_KEY: this environment variable is empty or not"),
        ("--env=SERPER_API_KEY=s3cr3t", "--env: give the name of an environment variable"),
        ("--env=sk-s3cr3t", "--env: give the name of an environment variable"),
        ("--env=", "--env: give the name of an environment variable"),
        ("--extra=tests", "--extra=tests: give mcp or wandb"),
    ],
)
def test_what_cannot_be_handed_on_is_refused_before_anything_is_made(
    place, script, flags, flag, message
):
    for dry in ((), ("--dry-run",)):
        done = place.run(script, *dry, *flags, flag, "--", *FLAGS, SERPER_API_KEY="")
        assert (done.returncode, done.stdout, place.calls()) == (2, "", [])
        assert message in done.stderr and len(done.stderr.splitlines()) == 1
        assert "s3cr3t" not in done.stderr


EXTRAS = ("--extra=wandb", "--extra=mcp")
FILES = ["-r", "requirements-wandb.txt", "-r", "requirements-mcp.txt"]


@pytest.mark.parametrize("script", ["gpu", "slurm"])
def test_extras_are_installed_where_the_run_is(place, script):
    _, install, _ = place.dry(script, *EXTRAS, "--", *FLAGS)
    assert install[install.index("requirements-cuda.txt") + 1 :][:4] == FILES


def test_extras_are_installed_on_a_slice(place):
    lines = [" ".join(line) for line in place.dry("tpu_pod", *SLICE, *EXTRAS, "--", *FLAGS)]
    assert any("tpu_worker.sh setup --extra=wandb --extra=mcp " in line for line in lines)
    install = place.dry("tpu_worker", "setup", *EXTRAS, "server:/runs")[1]
    assert install[install.index("requirements-tpu.txt") + 1 :][:4] == FILES


def test_extras_are_installed_in_the_image(place):
    build, *_ = place.dry("docker", *EXTRAS, "--", *FLAGS)
    assert "--build-arg=EXTRAS=wandb mcp" in build
    lines = (ROOT / "launch" / "Dockerfile").read_text().replace("\\\n", " ")
    (step,) = re.findall(r"^RUN (for extra in .*)$", lines, re.MULTILINE)
    place.add("pip", 'if [ "$BROKEN" ]; then exit 1; fi\n')
    for extras, broken, status in (("wandb mcp", "", 0), ("", "", 0), ("wandb mcp", "yes", 1)):
        place.calls_file.unlink(missing_ok=True)
        env = place.environment | {"EXTRAS": extras, "BROKEN": broken}
        assert subprocess.run(["sh", "-c", step], env=env).returncode == status
        read = [word for call in place.calls() for word in re.findall(r"-r \S+", call)]
        wanted = [f"-r requirements-{extra}.txt" for extra in extras.split()]
        assert read == (wanted[:1] if broken else wanted)

"""Launchers: the commands of a dry run, and the error message of a wrong call."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from rapo_jax.main import read_flags

ROOT = Path(__file__).resolve().parents[2]
LAUNCHERS = ("tpu_pod", "tpu_worker", "gpu", "slurm", "docker")
FLAGS = ("--config=configs/qwen7b.py", "--workdir=runs/x")
ODD = """--config.prompt.system=it's a "word" of $HOME & `two`; \\ done"""
SLICE = ("--name=rapo", "--zone=us-west4-a", "--type=v5litepod-16")
TPU = ["gcloud", "compute", "tpus", "tpu-vm"]
GPU = ["XLA_FLAGS=--xla_gpu_enable_latency_hiding_scheduler=true", "XLA_CLIENT_MEM_FRACTION=0.9"]


def installs(*extras):
    """The commands of setup.sh without a .venv, where uv is installed."""
    files = [word for e in extras for word in ("-r", f"requirements-{e}.txt")]
    start = ["uv", "pip", "install", "--quiet", "--python", ".venv/bin/python"]
    return [
        [sys.executable, "-m", "venv", ".venv"],
        [*start, "-r", "requirements.txt", *files, "-c", "requirements.lock"],
    ]


def program_line(place, *flags):
    root = str(place.repository)
    python = f"{root}/.venv/bin/python"
    return ["env", *GPU, f"PYTHONPATH={root}", python, "-m", "rapo_jax.main", *flags]


def test_a_gpu_run_is_an_installation_with_cuda_and_the_program_with_the_flags_given(place):
    assert place.dry("gpu", "--", *FLAGS) == [*installs("cuda"), program_line(place, *FLAGS)]


def test_the_callers_xla_flags_come_last_and_its_memory_fraction_is_kept(place):
    env = {"XLA_FLAGS": "--xla_gpu_autotune_level=2", "XLA_PYTHON_CLIENT_MEM_FRACTION": ".5"}
    *_, last = place.dry("gpu", "--", *FLAGS, **env)
    assert last[1] == f"{GPU[0]} --xla_gpu_autotune_level=2"
    assert not any(word.startswith("XLA_CLIENT_MEM_FRACTION") for word in last)


def test_a_slurm_job_starts_one_process_a_node_that_sees_all_gpus_of_its_node(place):
    step = ["srun", "--ntasks-per-node=1", "--kill-on-bad-exit=1"]
    line = program_line(place, "--config.distributed.mode=auto", *FLAGS)
    assert place.dry("slurm", "--", *FLAGS) == [*installs("cuda"), [*step, *line]]
    job = {"SLURM_JOB_ID": "7", "SLURM_GPUS_ON_NODE": "4", "SLURM_CPUS_PER_TASK": "16"}
    line.insert(1 + len(GPU), "JAX_LOCAL_DEVICE_IDS=0,1,2,3")
    *_, last = place.dry("slurm", "--", *FLAGS, **job)
    assert last == [*step, "--cpus-per-task=16", *line]


@pytest.mark.parametrize(
    ("job", "cpus"),
    [
        ({"SLURM_CPUS_ON_NODE": "2"}, "2"),
        ({"SLURM_CPUS_ON_NODE": "64", "SLURM_CPUS_PER_TASK": "4"}, "4"),
        ({"SLURM_CPUS_ON_NODE": "64", "SLURM_CPUS_PER_TASK": "8"}, None),
        ({"SLURM_CPUS_ON_NODE": "64"}, None),
        ({}, None),
    ],
)
def test_a_slurm_job_with_few_cpus_says_so_in_one_line(place, job, cpus):
    done = place.run("slurm", "--dry-run", "--", *FLAGS, SLURM_JOB_ID="7", **job)
    lines = [line for line in done.stderr.splitlines() if line.startswith("slurm: ")]
    assert len(lines) == (cpus is not None) and done.returncode == 0
    assert all(f"has {cpus} CPUs" in line and "--cpus-per-task=32" in line for line in lines)


def test_every_call_of_sbatch_that_is_shown_asks_for_cpus():
    shown = [ROOT / "launch" / "slurm.sh", ROOT / "docs" / "launch.md"]
    calls = [
        line for path in shown for line in path.read_text().splitlines() if "sbatch --nodes" in line
    ]
    assert len(calls) == 3 and all("--cpus-per-task=32 --mem=0" in line for line in calls)


def test_the_copy_that_sbatch_runs_finds_the_repository_in_the_submission_folder(place):
    copy = place.tmp_path / "spool" / "slurm_script"
    copy.parent.mkdir()
    shutil.copy(place.repository / "launch" / "slurm.sh", copy)
    line = ["bash", str(copy), "--dry-run", "--", *FLAGS]
    job = place.environment | {"SLURM_JOB_ID": "7"}

    def run(submitted_in):
        env = job | {"SLURM_SUBMIT_DIR": str(submitted_in)}
        return subprocess.run(line, env=env, cwd=submitted_in, capture_output=True, text=True)

    assert str(place.repository / ".venv") in run(place.repository).stdout
    elsewhere = run(place.tmp_path)
    assert elsewhere.returncode == 2 and "submit from the repository's folder" in elsewhere.stderr


def test_a_container_shares_runs_and_the_mounted_folders_and_belongs_to_the_caller(place):
    root = str(place.repository)
    flags = ("--image=mine", "--gpus=2", "--mount=/big models")
    assert place.dry("docker", *flags, "--", *FLAGS) == [
        ["docker", "build", f"--file={root}/launch/Dockerfile", "--tag=mine", root],
        ["mkdir", "-p", f"{root}/runs"],
        [
            "docker", "run", "--rm", "--init", "--stop-timeout=1800", "--gpus=2",
            "--shm-size=8g", f"--user={os.getuid()}:{os.getgid()}", "--env=HOME=/tmp",
            "--env=USER=rapo", f"--volume={root}/runs:/rapo_jax/runs",
            "--volume=/big models:/big models:ro", "mine", *FLAGS,
        ],
    ]  # fmt: skip


def test_a_tpu_run_makes_copies_installs_starts_waits_fetches_and_deletes_in_this_order(place):
    def tpu(*words):
        return [*TPU, *words, "--zone=us-west4-a", "--project=p", "--quiet"]

    def scp(*words):
        return tpu("scp", *words, "--internal-ip")

    def ssh(worker, command):
        return tpu("ssh", "rapo", f"--worker={worker}", f"--command={command}", "--internal-ip")

    root, archive = str(place.repository), f"{place.tmp_path}/rapo_jax-rapo.tgz"
    script, results = "bash rapo_jax/launch/tpu_worker.sh", f"{root}/runs/x"
    state = f"if [ -e rapo_jax/launch ]; then {script} state runs/x; fi"
    printed = place.dry(
        "tpu_pod", *SLICE, "--project=p", "--create=--spot", "--ssh=--internal-ip",
        "--prepare=hf download 'a b'", "--delete", "--", *FLAGS,
    )  # fmt: skip
    pack = next(words for words in printed if words[0] == "tar")
    assert pack[:6] == ["tar", "-czf", archive, "--exclude=__pycache__", "-C", root]
    assert all((ROOT / name).exists() for name in pack[6:])
    printed.remove(pack)
    kind = "--accelerator-type=v5litepod-16"
    unpack = "mkdir -p rapo_jax && cd rapo_jax && rm -rf rapo_jax configs launch && "
    assert printed == [
        tpu("list", "--format=csv[no-heading](name.basename(),state,acceleratorType)"),
        ["ssh-keygen", "-lf", f"{place.tmp_path}/.ssh/google_compute_engine"],
        ["ssh-add", "-l"],
        tpu("create", "rapo", kind, "--version=v2-alpha-tpuv5-lite", "--spot"),
        ssh("all", "true"),
        ssh("all", state),
        scp(archive, "rapo:rapo_jax.tgz", "--worker=all"),
        ["rm", archive],
        ssh("all", f"{unpack}tar -xzf ../rapo_jax.tgz"),
        ssh("all", f"{script} setup"),
        ssh(0, "if [ -e rapo_jax/runs/x ]; then echo there; fi"),
        ssh(0, "mkdir -p rapo_jax/runs && rm -rf rapo_jax/runs/x.part"),
        scp("--recurse", results, "rapo:rapo_jax/runs/x.part", "--worker=0"),
        ssh(0, "mv rapo_jax/runs/x.part rapo_jax/runs/x"),
        ssh("all", "cd rapo_jax && hf download 'a b'"),
        ssh("all", f"{script} start {' '.join(FLAGS)}"),
        ssh("all", state),
        ssh("all", f"{script} stop runs/x"),
        ["mkdir", "-p", f"{root}/runs"],
        ["rm", "-rf", f"{results}.part"],
        scp("--recurse", "rapo:rapo_jax/runs/x", f"{results}.part", "--worker=0"),
        ["rm", "-rf", f"{results}.before"],
        ["mv", results, f"{results}.before"],
        ["mv", f"{results}.part", results],
        tpu("delete", "rapo"),
    ]


@pytest.mark.parametrize(
    "kind, version",
    [
        ("v6e-16", "v2-alpha-tpuv6e"),
        ("v5p-32", "v2-alpha-tpuv5"),
        ("v5litepod-64", "v2-alpha-tpuv5-lite"),
        ("v4-32", "tpu-ubuntu2204-base"),
    ],
)
def test_each_kind_of_tpu_has_a_software_version(place, kind, version):
    slice_env = {"TPU_NAME": "rapo", "TPU_ZONE": "z", "TPU_TYPE": kind}
    create = next(
        words for words in place.dry("tpu_pod", "--", *FLAGS, **slice_env) if "create" in words
    )
    assert f"--version={version}" in create and f"--accelerator-type={kind}" in create


def test_a_tpu_worker_installs_exports_runs_and_starts_a_new_session(place):
    setup, start = place.dry("tpu_worker", "setup"), place.dry("tpu_worker", "start", *FLAGS)
    assert setup[:3] == [*installs("tpu"), ["mkdir", "-p", "runs"]]
    ids = f"anonuid={os.getuid()},anongid={os.getgid()}"
    options = f"rw,no_subtree_check,all_squash,{ids}"
    root = str(place.repository)
    assert setup[-1] == ["sudo", "exportfs", "-o", options, f"WORKER1:{root}/runs"]
    assert start[-1][:4] == ["setsid", "nohup", "bash", "-c"]
    assert start[-1][-6:] == [
        ".venv/bin/python", "-m", "rapo_jax.main", "--config.distributed.mode=auto", *FLAGS,
    ]  # fmt: skip


@pytest.mark.parametrize("call", [("slurm", "--"), ("tpu_worker", "start")])
def test_a_mode_of_processes_that_the_caller_gives_wins(place, call):
    script, before = call
    *_, line = place.dry(script, before, *FLAGS, "--config.distributed.mode=off")
    modes = [value for key, value in read_flags(line[line.index("rapo_jax.main") + 1 :]).flags]
    assert modes == ["auto", "off"]  # the last one counts


@pytest.mark.parametrize("script", ["gpu", "slurm", "docker"])
def test_a_flag_with_spaces_and_quotes_reaches_the_program_as_it_was_given(place, script):
    *_, last = place.dry(script, "--", *FLAGS, ODD)
    assert ODD in last


def test_a_flag_with_spaces_and_quotes_survives_the_two_shells_on_the_way_to_a_tpu(place):
    printed = place.dry("tpu_pod", *SLICE, "--", *FLAGS, ODD)
    command = next(w for words in printed for w in words if " start " in w).partition("=")[2]
    assert shlex.split(command)[2:] == ["start", *FLAGS, ODD]
    assert ODD in place.dry("tpu_worker", "start", *FLAGS, ODD)[-1]


WRONG_CALLS = [
    ("tpu_pod", (*SLICE[1:], "--", *FLAGS), "tpu_pod: --name is missing"),
    ("tpu_pod", (SLICE[0], SLICE[2], "--", *FLAGS), "tpu_pod: --zone is missing"),
    ("tpu_pod", (*SLICE[:2], "--", *FLAGS), "tpu_pod: --type is missing"),
    ("tpu_pod", (*SLICE[:2], "--type=v9-8", "--", *FLAGS), "--type=v9-8: its software version"),
    ("tpu_pod", (*SLICE, "--poll=soon", "--", *FLAGS), "--poll=soon: give whole seconds"),
    ("tpu_pod", (*SLICE, "--", FLAGS[0]), "--workdir is missing"),
    ("tpu_pod", (*SLICE, "--", FLAGS[0], "--workdir=/data"), "--workdir=/data: only runs/"),
    ("tpu_pod", (*SLICE, "--", FLAGS[0], "--workdir=runs/../x"), "--workdir=runs/../x: only"),
    (
        "tpu_pod",
        (*SLICE, "--", "--config=mine.py", FLAGS[1]),
        "--config=mine.py: only configs/",
    ),
    ("tpu_pod", (*SLICE, *FLAGS), "Flags of the program come after --"),
    ("tpu_worker", (), "give setup, start, state or stop"),
    ("gpu", ("--",), "gpu: --config is missing"),
    ("gpu", FLAGS, "Flags of the program come after --"),
    ("slurm", ("--", FLAGS[1]), "slurm: --config is missing"),
    ("slurm", ("--", *FLAGS), "slurm: not in a SLURM job; submit it: sbatch"),
    ("docker", ("--", FLAGS[0]), "docker: --workdir is missing"),
    ("docker", ("--", FLAGS[0], "--workdir=/x"), "--workdir=/x: only runs/"),
    ("docker", ("--mount=models", "--", *FLAGS), "--mount=models: give the whole path"),
]


def test_a_wrong_call_is_reported_in_one_line_and_starts_nothing(place):
    for script, args, message in WRONG_CALLS:
        done = place.run(script, *args)
        assert (done.returncode, done.stdout, place.calls()) == (2, "", []), (script, args)
        assert message in done.stderr and len(done.stderr.splitlines()) == 1


def test_a_dry_run_and_a_help_text_start_nothing_and_leave_nothing(place):
    def files():
        return sorted(place.tmp_path.rglob("*"))

    before = files()
    for script in LAUNCHERS:
        worker = script == "tpu_worker"
        flags = [*SLICE, "--delete"] if script == "tpu_pod" else ["start"] if worker else []
        assert place.dry(script, *flags, *([] if worker else ["--"]), *FLAGS)
        text = place.run(script, "--help")
        assert text.returncode == 0 and f"launch/{script}.sh" in text.stdout
        assert "--dry-run" in text.stdout and "set -euo" not in text.stdout
    assert files() == before and place.calls() == []

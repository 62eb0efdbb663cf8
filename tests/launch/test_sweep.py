from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.launch.sweeps import LAUNCH, PROGRAM, flags_of, load, refusal, sweep


def job_of(workdir, **more):
    """A run that RL and what follows it make."""
    more = {"settings": {}, "stages": ("rl", "evaluate", "report")} | more
    return load("jobs").Job(workdir.name, workdir, **more)


def test_a_sweep_shares_compares_and_continues_where_it_stopped(tmp_path, program, capsys):
    folder = tmp_path / "w"
    flags = flags_of(folder, "--sweep=method=grpo,rapo", "--sweep=seed=0,1", "--jobs=2")
    assert sweep.main(flags, program) == 0
    order = (folder / "order").read_text().split()
    assert order[0] == "shared" and len(order) == 5
    summary = json.loads((folder / "summary.json").read_text())
    assert [each["label"] for each in summary["variants"]] == ["grpo", "rapo"]
    assert summary["variants"][1]["difference"] == pytest.approx([0.1, 0.1, 0.1])
    assert (folder / "report.html").exists()
    assert (folder / "summary.md").read_text() in capsys.readouterr().out

    assert sweep.main([*flags[:-2], "--sweep=seed=0,1,2"], program) == 0
    assert (folder / "order").read_text().split()[5:] == ["grpo_seed=2", "rapo_seed=2"]


def test_a_run_is_finished_when_all_its_stages_are(tmp_path):
    job = job_of(tmp_path / "grpo")
    job.workdir.mkdir()
    for text, finished in (
        ('{"stages": ["rl", "eval', False),
        ('{"stages": ["rl", "evaluate"]}', False),
        ('{"stages": ["rl", "evaluate", "report"]}', True),
    ):
        (job.workdir / "done.json").write_text(text)
        assert job.finished is finished


def test_a_failed_run_is_reported_with_its_log_and_the_others_continue(tmp_path, program, capsys):
    folder = tmp_path / "w"
    assert sweep.main(flags_of(folder, "--sweep=seed=7,1"), program) == 1
    assert (folder / "seed=1" / "done.json").exists()
    out = capsys.readouterr().out
    assert str(folder / "seed=7.log") in out and "seed 7 brings bad luck" in out


def test_no_run_starts_if_the_shared_cold_start_fails(tmp_path, program):
    folder = tmp_path / "w"
    more = ("--config.seed=7", "--sweep=method=grpo,rapo")
    assert sweep.main(flags_of(folder, *more), program) == 1
    assert (folder / "order").read_text().split() == ["shared"]


def test_what_seeds_make_comes_first_and_a_sweep_continues_only_with_the_same_choice(
    tmp_path, program, capsys
):
    folder = tmp_path / "w"
    flags = flags_of(folder, "--sweep=method=grpo,rapo", "--sweep=seed=0,1", "--per-seed=buffer")
    assert sweep.main(flags, program) == 0
    made = ["shared", "shared_seed=0", "shared_seed=1"]
    order = (folder / "order").read_text().split()
    assert order[:3] == made and len(order) == 7
    assert "was started with" in refusal(lambda: sweep.main(flags[:-1], program), capsys)
    assert sweep.main([*flags[:-2], "--sweep=seed=0,1,2", flags[-1]], program) == 0
    order = (folder / "order").read_text().split()[7:]
    assert order == ["shared_seed=2", "grpo_seed=2", "rapo_seed=2"]


def test_no_run_starts_if_the_buffer_of_a_seed_fails(tmp_path, program):
    folder = tmp_path / "w"
    assert sweep.main(flags_of(folder, "--sweep=seed=1,7", "--per-seed=buffer"), program) == 1
    order = (folder / "order").read_text().split()
    assert order == ["shared", "shared_seed=1", "shared_seed=7"]


@pytest.mark.parametrize(
    "more",
    [
        ("--sweeps=seed=0",),
        ("--config.rl.steps", "3"),
        ("--jobs=0",),
        ("--sweep=seed=0", "--config.seed=1"),
    ],
)
def test_unknown_flags_are_refused_before_anything_starts(tmp_path, program, more):
    folder = tmp_path / "w"
    with pytest.raises(SystemExit):
        sweep.main(flags_of(folder, *more), program)
    assert not folder.exists()


def test_a_sweep_does_not_continue_with_other_common_flags(tmp_path, program, capsys):
    assert sweep.main(flags_of(tmp_path / "w", "--config.rl.m=0"), program) == 0
    flags = flags_of(tmp_path / "w", "--config.rl.m=1")
    assert "was started with" in refusal(lambda: sweep.main(flags, program), capsys)


def test_a_sweep_continues_with_its_flags_in_another_order_and_leaves_sweep_json_as_it_is(
    tmp_path, program
):
    common = ["--config.rl.m=0", "--config.rl.a=0"]
    written = set()
    for flags in (common, common[::-1]):
        assert sweep.main(flags_of(tmp_path / "w", *flags), program) == 0
        written.add((tmp_path / "w" / "sweep.json").stat().st_mtime_ns)
    assert len(written) == 1


def test_a_sweep_continues_whatever_path_names_its_config_file(tmp_path, program):
    config, folder = tmp_path / "c.py", tmp_path / "w"
    config.write_text("from configs import tiny\n\nget_config = tiny.get_config\n")
    for path in (config, os.path.relpath(config)):
        flags = [f"--config={path}", *flags_of(folder)[1:]]
        assert sweep.main(flags, program) == 0


def test_a_sweep_of_an_older_version_continues_with_its_one_buffer(tmp_path, program, capsys):
    flags = flags_of(tmp_path / "w", "--sweep=seed=0")
    assert sweep.main(flags, program) == 0
    file = tmp_path / "w" / "sweep.json"
    older = json.loads(file.read_text())
    assert older.pop("per_seed") == "nothing" and older.pop("values")
    file.write_text(json.dumps(older))
    assert sweep.main(flags, program) == 0
    more = [*flags, "--per-seed=buffer"]
    assert "was started with" in refusal(lambda: sweep.main(more, program), capsys)


def test_a_sweep_does_not_continue_where_its_config_file_was_edited(tmp_path, program, capsys):
    config, folder = tmp_path / "c.py", tmp_path / "w"
    text = "from configs import tiny\n\ndef get_config():\n    c = tiny.get_config()\n"
    text += "    c.buffer.expert_error = 0.0\n    return c\n"
    config.write_text(text)
    flags = [f"--config={config}", f"--workdir={folder}", "--sweep=seed=0"]
    assert sweep.main(flags, program) == 0
    order = (folder / "order").read_text()
    config.write_text(text.replace("0.0", "0.5"))
    said = refusal(lambda: sweep.main([*flags[:2], "--sweep=seed=0,1"], program), capsys)
    assert "buffer.expert_error was 0.0, is 0.5; set them back" in said
    assert (folder / "order").read_text() == order
    config.write_text(f"{text}# a remark\n")
    assert sweep.main([*flags[:2], "--sweep=seed=0,1"], program) == 0


def test_a_damaged_sweep_json_ends_with_a_line_that_names_it(tmp_path, program, capfd):
    (tmp_path / "sweep.json").write_text("")
    with pytest.raises(SystemExit, match="^2$"):
        sweep.main(flags_of(tmp_path), program)
    (line,) = capfd.readouterr().err.splitlines()
    assert line.startswith(f"error: {tmp_path / 'sweep.json'}: cut off or damaged")


def alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().split()[2] != "Z"
    except FileNotFoundError:
        return False


def wait_for(condition, seconds=30):
    deadline = time.monotonic() + seconds
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.02)
    return condition()


def test_a_run_is_done_by_its_done_json_and_not_by_its_status(tmp_path, program, capsys):
    assert sweep.main(flags_of(tmp_path / "w", "--sweep=seed=8,1"), program) == 1
    assert "FAILED with status 0  seed=8" in capsys.readouterr().out
    (tmp_path / "program.py").write_text(PROGRAM + "sys.exit(3)\n")
    assert sweep.main(flags_of(tmp_path / "w", "--sweep=seed=2"), program) == 0
    assert "done, but with status 3  seed=2" in capsys.readouterr().out


def test_a_run_whose_suites_failed_is_not_done(tmp_path):
    job = job_of(tmp_path / "a", stages=("rl", "evaluate"))
    job.workdir.mkdir()
    for noted, done in (("held-out", False), ("evaluate", True)):
        (job.workdir / "done.json").write_text(json.dumps({"stages": ["rl", noted]}))
        assert job.ended_well(0) is job.finished is done


def test_the_status_decides_on_stages_that_done_json_never_names(tmp_path):
    stages = {"a": ("evaluate",), "b": ("rl", "export")}
    jobs = [job_of(tmp_path / name, stages=wanted) for name, wanted in stages.items()]
    assert [job.ended_well(0) for job in jobs] == [True, False]
    jobs[1].workdir.mkdir()
    (jobs[1].workdir / "done.json").write_text('{"stages": ["rl"]}')
    assert [job.ended_well(0) for job in jobs] == [True, True]
    assert [job.ended_well(1) for job in jobs] == [False, False]


@pytest.fixture
def endless(tmp_path, program):
    """(sweep, the ids of its run and of what that started), once both live."""
    flags = flags_of(tmp_path / "w", "--sweep=seed=9")
    start = (  # tests run in the background inherit that SIGINT is ignored
        "import signal; signal.signal(signal.SIGINT, signal.default_int_handler); "
        f"import sys; sys.path.insert(0, {str(LAUNCH)!r}); import sweep; "
        f"sweep.main({flags!r}, {program!r})"
    )
    parent = subprocess.Popen(
        [sys.executable, "-c", start], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        start_new_session=True,
    )  # fmt: skip
    pids = tmp_path / "w" / "seed=9" / "pids"
    try:
        assert wait_for(lambda: pids.exists() and pids.read_text())
        yield parent, *map(int, pids.read_text().split())
    finally:
        parent.kill()
        parent.wait()


def test_an_interrupt_ends_all_runs(endless):
    parent, run, started = endless
    parent.send_signal(signal.SIGINT)
    assert parent.wait(30) != 0
    assert wait_for(lambda: not alive(run) and not alive(started))


def test_a_run_dies_with_a_sweep_that_is_killed(endless):
    parent, run, started = endless
    parent.kill()
    dead = wait_for(lambda: not alive(run))
    os.kill(started, signal.SIGKILL)  # the program's own; a run's tools end with the run
    assert dead


def test_a_sweep_killed_with_its_process_group_leaves_nothing_and_the_next_one_continues(
    tmp_path, endless, program
):
    parent, run, started = endless
    os.killpg(parent.pid, signal.SIGKILL)
    assert wait_for(lambda: not alive(run))
    os.kill(started, signal.SIGKILL)
    (tmp_path / "program.py").write_text(PROGRAM.replace("seed == 9", "seed == 99"))
    assert sweep.main(flags_of(tmp_path / "w", "--sweep=seed=9"), program) == 0


def test_a_run_starts_when_the_one_before_in_its_workdir_has_ended(tmp_path, program, capsys):
    folder = tmp_path / "w" / "seed=1"
    folder.mkdir(parents=True)
    hold = (
        f"import fcntl, time; file = open({str(folder / '.lock')!r}, 'w'); "
        "fcntl.lockf(file, fcntl.LOCK_EX); print('held', flush=True); time.sleep(4)"
    )
    former = subprocess.Popen([sys.executable, "-c", hold], stdout=subprocess.PIPE)
    assert former.stdout.readline() == b"held\n"
    (tmp_path / "program.py").write_text(
        "import fcntl, pathlib, sys\n"
        "workdir = pathlib.Path(sys.argv[2].partition('=')[2])\n"
        "workdir.mkdir(parents=True, exist_ok=True)\n"
        "file = (workdir / '.lock').open('w')\n"
        "fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)\n" + PROGRAM
    )
    assert sweep.main(flags_of(tmp_path / "w", "--sweep=seed=1"), program) == 0
    assert "FAILED" not in capsys.readouterr().out
    assert former.wait(10) == 0


def test_parallel_jobs_share_the_cores_and_a_single_job_has_all():
    jobs = load("jobs")
    cores = os.sched_getaffinity(0)
    assert jobs.share_of_cores(0, 1) == cores
    shares = [jobs.share_of_cores(slot, len(cores)) for slot in range(len(cores))]
    assert sorted(core for share in shares for core in share) == sorted(cores)
    crowded = [jobs.share_of_cores(slot, 2 * len(cores)) for slot in range(2 * len(cores))]
    assert all(len(share) == 1 and share <= cores for share in crowded)


def test_each_job_of_a_sweep_runs_on_separate_cores_and_the_sweep_keeps_all(tmp_path):
    program = tmp_path / "program.py"
    write_cores = (
        "import os; (workdir / 'cores').write_text(repr(sorted(os.sched_getaffinity(0))))\n"
    )
    program.write_text(PROGRAM + write_cores)
    folder, before = tmp_path / "sweep", os.sched_getaffinity(0)
    parallel = len(before)
    seeds = ",".join(str(seed) for seed in range(parallel))
    flags = flags_of(folder, f"--sweep=seed={seeds}", f"--jobs={parallel}")
    assert sweep.main(flags, [str(program)]) == 0
    assert os.sched_getaffinity(0) == before
    cores_of_jobs = [json.loads(path.read_text()) for path in folder.glob("seed=*/cores")]
    assert [len(cores) for cores in cores_of_jobs] == [1] * parallel

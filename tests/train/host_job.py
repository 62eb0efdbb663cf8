"""One process of a run that `test_hosts.py` starts: trains, evaluates, then breaks its tools.

python tests/train/host_job.py WORKDIR CONFIG.json REPORT.json
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import jax

from rapo_jax import distributed
from rapo_jax.config.read import read_settings
from rapo_jax.run.policy import load_policy
from rapo_jax.sampling.tapes import segments
from rapo_jax.stages.job import open_workdir
from rapo_jax.stages.table import JOB_STAGES, open_job
from rapo_jax.tasks.stream import load_questions
from rapo_jax.tools.observation import Observation
from rapo_jax.types import Source


def broken(calls):
    return [Observation("no such service here", "error") for _ in calls]


def raising(calls):
    raise OSError("the wire is cut")


def refusal(work):
    """What an action that is refused says."""
    try:
        work()
    except (ValueError, RuntimeError, distributed.Stopped) as error:
        return str(error)
    return None


def refuse_folder():
    raise ValueError("this folder belongs to another run")


def stop():
    raise distributed.Stopped("3 trajectories are kept")


def main(workdir, config_file, report_file):
    config = json.loads(Path(config_file).read_text(), object_hook=with_tuples)
    settings = read_settings(config)
    distributed.start(settings.distributed)
    process = jax.process_index()
    found = {
        "other_config": refusal(lambda: distributed.check_same({"rl": {"m": process, "a": 1}})),
        "refused": refusal(lambda: distributed.on_first(refuse_folder)),
        "stopped": refusal(lambda: distributed.on_first(stop)),
        "shared": distributed.allgather_json({"from": process, "text": "x" * 300 * process}),
        "turns": distributed.in_turn(lambda: in_file(workdir / "turns.txt", process)),
    }
    open_workdir(workdir, config)
    stages = ("rl", "evaluate", "suites")
    with open_job(settings, workdir, stages) as job:
        for name in stages:
            with job.timed(name):
                JOB_STAGES[name](job)
        found |= break_tools(job.run)
    Path(report_file).write_text(json.dumps(found))


def break_tools(run):
    """What rollouts report whose tools fail on one of the processes."""
    process, r = jax.process_index(), run.settings.rollout
    params = run.sampler.load(load_policy(run, run.workdir))
    questions = distributed.local_part(load_questions(run.questions["train"])[: r.questions])

    def observations():
        """Of every row, what tools said; the last process has tools of its own."""
        trajectory = run.sampler.sample(
            params,
            jax.random.key(5),
            questions,
            group_size=r.group_size,
            n_hybrid=r.n_hybrid,
            temperature=1.0,
        )
        rows = range(len(trajectory.length_B))
        return [
            [s.text for s in segments(run.tokens, trajectory, b) if s.source == Source.TOOL]
            for b in rows
        ]

    def equip(tool):
        if process == jax.process_count() - 1:
            run.environment._running._tools = dict.fromkeys(run.tools, tool)

    equip(broken)
    found = {"observations": observations()}
    equip(raising)
    return found | {"failure": refusal(observations)}


def in_file(path, process):
    with open(path, "a") as file:
        file.write(f"{process}\n")
    return path.read_text().split()


def with_tuples(group):
    return {key: tuple(x) if isinstance(x, list) else x for key, x in group.items()}


if __name__ == "__main__":
    try:
        main(Path(sys.argv[1]), *sys.argv[2:])
    except Exception:
        distributed.leave(1)
        raise

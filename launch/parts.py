"""What the runs of a sweep share: a cold start and a Step-Trace Buffer, and who makes them."""

from __future__ import annotations

from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple, TypeAlias

from jobs import Job

Config: TypeAlias = dict[str, object]
"""Dotted key -> value."""


class Part(NamedTuple):
    """What runs may share, made by the stage of its name."""

    stage: str
    folder: str
    """Within the workdir of the run that makes it; the key STAGE.folder names another."""
    depends: tuple[str, ...]
    """Keys, or groups of keys, that decide what it is."""

    def depends_on(self, keys: Iterable[str]) -> bool:
        return any(f"{key}.".startswith(f"{group}.") for key in keys for group in self.depends)

    def folder_in(self, workdir: Path) -> dict[str, str]:
        """The setting that names the part which the run of this workdir has made."""
        return {f"{self.stage}.folder": str(workdir / self.folder)}


AGENTS = (
    *("task", "tokenizer", "prompt", "tools", "rollout.max_calls"),
    *("rollout.prompt_tokens", "rollout.observation_tokens", "rollout.max_tokens"),
)
"""Keys on which the trajectories of agents, or their tapes, depend."""
PARTS = (
    Part("sft", "coldstart", (
        *("sft", "model", *AGENTS), *("optimizer.b1", "optimizer.b2", "optimizer.eps"),
    )),
    Part("buffer", "buffer", (
        *("buffer", "model.folder", *AGENTS, "rollout.step_tokens"),
        *("retrieval.unit", "retrieval.mask", "retrieval.max_chars", "retrieval.encoder"),
        *("retrieval.encoder_folder", "retrieval.encoder_tokens", "retrieval.width"),
    )),
)  # fmt: skip
PER_SEED = {"nothing": (), "buffer": ("buffer",), "both": ("sft", "buffer")}
"""Stages whose parts each seed makes anew. A buffer needs the tokenizer of its cold start, so that
no seed makes a cold start alone."""
PER_SEED_HELP = "what each seed makes anew: its buffer, or both cold start and buffer"


def make_jobs(
    workdir: Path,
    runs: Mapping[str, dict[str, str]],
    common: Config,
    configs: Sequence[Config],
    per_seed: Container[str] = (),
) -> tuple[list[Job], list[Job]]:
    """The jobs that make what runs share, that of all runs first, and the jobs of all runs.

    `configs` are those of the runs, `common` is that of the flags for all: its seed makes what all
    runs share. Parts of the stages in `per_seed` are made with the seed of a run, and shared by
    the runs of that seed.
    """
    jobs: list[Job] = []
    made: dict[str, list[Part]] = {}  # by seed, "" for what all runs share
    for (name, settings), config in zip(runs.items(), configs, strict=True):
        changed = {key for key in common | config if common.get(key) != config.get(key)}
        stages, folders = tuple(config["stages"]), {}
        for part in PARTS:
            if part.stage not in common["stages"] or part.depends_on(changed):
                continue
            seed = settings.get("seed", "") if part.stage in per_seed else ""
            if part not in made.setdefault(seed, []):
                made[seed].append(part)
            if not common[f"{part.stage}.folder"]:
                folders |= part.folder_in(workdir / name_of_maker(seed))
            if "stages" not in settings:
                stages = tuple(stage for stage in stages if stage != part.stage)
        jobs.append(Job(name, workdir / name, folders | settings, stages))
    return list(_makers(workdir, made, common)), jobs


def name_of_maker(seed: str) -> str:
    """The run that makes what the runs of a seed share, or all runs where the seed is ""."""
    return f"shared_seed={seed}" if seed else "shared"


def _makers(workdir: Path, made: Mapping[str, Sequence[Part]], common: Config) -> Iterator[Job]:
    """The jobs of shared parts; those of seeds use what all runs share."""
    for seed in sorted(made):
        settings = {"seed": seed} if seed else {}
        for part in made.get("", ()):
            if part not in made[seed] and not common[f"{part.stage}.folder"]:
                settings |= part.folder_in(workdir / name_of_maker(""))
        stages = tuple(part.stage for part in PARTS if part in made[seed])
        yield Job(name_of_maker(seed), workdir / name_of_maker(seed), settings, stages)

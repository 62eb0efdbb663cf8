"""What the runs of a sweep share: a cold start and a Step-Trace Buffer, and who makes them."""

from __future__ import annotations

import dataclasses
from collections.abc import Container, Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple, TypeAlias

from jobs import Job
from variants import name_of

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

    def settings_in(
        self, settings: Mapping[str, str], config: Config, common: Config
    ) -> dict[str, str]:
        """The settings of a run that change the part; `common` is the config without them."""
        return {
            key: text
            for key, text in settings.items()
            if config.get(key) != common.get(key) and self.depends_on([key])
        }

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
    """The jobs that make what runs share, and the jobs of all runs.

    `configs` are those of the runs, `common` is that of the flags for all. A part is made once for
    all runs that agree in the settings on which it depends, with the seed of `common`; parts of
    the stages in `per_seed` once for each seed of these runs. The job that makes a buffer alone
    reads the cold start of the first run that needs it, for its tokenizer.
    """
    makers: dict[str, Job] = {}
    folders: dict[str, dict[str, str]] = {name: {} for name in runs}
    stages = {name: stages_of(each) for name, each in zip(runs, configs, strict=True)}
    for part in PARTS:
        if part.stage not in stages_of(common):
            continue
        for (name, settings), config in zip(runs.items(), configs, strict=True):
            own = part.settings_in(settings, config, common)
            named = common[f"{part.stage}.folder"]
            if named and own:
                continue
            if part.stage in per_seed and "seed" in settings:
                own["seed"] = settings["seed"]
            maker = name_of_maker(own)
            made = makers.get(maker, Job(maker, workdir / maker, folders[name] | own, ()))
            if part.stage not in made.stages:
                makers[maker] = dataclasses.replace(made, stages=(*made.stages, part.stage))
            if not named:
                folders[name] |= part.folder_in(made.workdir)
            if "stages" not in settings:
                stages[name] = tuple(stage for stage in stages[name] if stage != part.stage)
    jobs = [
        Job(name, workdir / name, folders[name] | settings, stages[name])
        for name, settings in runs.items()
    ]
    return list(makers.values()), jobs


def stages_of(config: Config) -> tuple[str, ...]:
    stages = config["stages"]
    assert isinstance(stages, Sequence)
    return tuple(map(str, stages))


def name_of_maker(settings: dict[str, str]) -> str:
    """The run that makes what runs with these settings share, those of all runs left out."""
    return f"shared_{name_of(settings)}" if settings else "shared"

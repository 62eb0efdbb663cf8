"""The picture of the study `map`: which method ends where, by its start and by the teacher."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from rapo_jax.report.charts import picture
from rapo_jax.report.studies import MEASURES, Values, Variants

if TYPE_CHECKING:
    from matplotlib.axes import Axes


class Place(NamedTuple):
    """A variant's place in the map."""

    method: str
    teacher: str
    """"" for a method that has none."""
    start: str
    """"" for the start of the config."""

    @property
    def label(self) -> str:
        return ", ".join(filter(None, self))


def draw_map(
    variants: Variants,
    values: Values,
    measures: Sequence[str],
    file: Path,
    *,
    places: Sequence[Place],
) -> None:
    """A panel for each start: means of the first measure by teacher, a dot for each seed.

    A method without a teacher is a dashed line. Without any value no picture is written.
    """
    measure = MEASURES[measures[0]]
    seeds = {
        place: [x * measure.scale for x in values[place.label].get(measures[0], {}).values()]
        for place in places
    }
    if not any(seeds.values()):
        return
    methods, teachers, starts = (list(dict.fromkeys(each)) for each in zip(*places, strict=True))
    teachers = [teacher for teacher in teachers if teacher]
    with picture(file, size=(1.8 + 2.9 * len(starts), 3.4)) as figure:
        panels = figure.subplots(1, len(starts), sharey=True, squeeze=False)[0]
        for axes, start in zip(panels, starts, strict=True):
            for number, method in enumerate(methods):
                found = [seeds.get(Place(method, each, start), []) for each in teachers]
                alone = seeds.get(Place(method, "", start), [])
                _draw_method(axes, method, found, alone, colour=f"C{number}")
            axes.set(title=start or "start of the config", xlim=(-0.3, len(teachers) - 0.7))
            axes.set_xticks(
                range(len(teachers)), [each.replace("teacher ", "") for each in teachers]
            )
            axes.grid(alpha=0.3)
        panels[0].set_ylabel(measure.name)
        figure.supxlabel("teacher", fontsize="medium")
        figure.legend(*panels[0].get_legend_handles_labels(), loc="outside right center")


def _draw_method(
    axes: Axes, name: str, found: Sequence[Sequence[float]], alone: Sequence[float], *, colour: str
) -> None:
    """One method: `found[i]` has its seeds with teacher i, `alone` those without a teacher."""
    if alone:
        axes.axhline(float(np.mean(alone)), color=colour, lw=1.6, ls="--", label=name)
        return
    for place, seeds in enumerate(found):
        axes.plot([place] * len(seeds), seeds, "o", color=colour, ms=3.5, alpha=0.4)
    means = [float(np.mean(seeds)) if seeds else np.nan for seeds in found]
    axes.plot(means, "o-", color=colour, lw=1.6, ms=5, label=name)

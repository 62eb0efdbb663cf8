"""Questions of any task as a tensorflow-datasets builder: array_record files, no TensorFlow.

Importing this module imports tensorflow_datasets; `tasks/stream.py` does so where it is needed.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

import tensorflow_datasets as tfds

from rapo_jax.tasks import SPLITS, Question, find_task


@dataclasses.dataclass(kw_only=True)
class QuestionsConfig(tfds.core.BuilderConfig):
    """One data set: a task and its world."""

    task: str
    world: Any = dataclasses.field(repr=False, compare=False)

    @classmethod
    def of(cls, task: str, parameters: Mapping[str, Any], world: Any) -> QuestionsConfig:
        """The config whose name says its content, so that two worlds never share a folder.

        Content is the hyper-parameters of the world, its seed included, and what was read from
        files: counts, malformed lines and a hash.
        """
        sources = find_task(task).sources(world)
        content = json.dumps([task, dict(parameters), *sources], sort_keys=True)
        digest = hashlib.sha256(content.encode()).hexdigest()[:12]
        name = f"{re.sub(r'[^A-Za-z0-9]', '_', task)}-{digest}"
        return cls(name=name, description=content, task=task, world=world)


class TaskQuestions(tfds.core.GeneratorBasedBuilder):
    """Splits train, eval and expert with rows id, question, answers, kind and source.

    Of splits that are one list, the first alone is kept.
    """

    VERSION = tfds.core.Version("1.0.0")
    builder_config: QuestionsConfig

    def _info(self) -> tfds.core.DatasetInfo:
        text = tfds.features.Text
        return tfds.core.DatasetInfo(
            builder=self,
            description="Questions of a task family of rapo_jax, generated from its parameters.",
            features=tfds.features.FeaturesDict(
                {
                    "id": text(),
                    "question": text(),
                    "answers": tfds.features.Sequence(text()),
                    "kind": text(),
                    "source": text(),
                }
            ),
            disable_shuffling=True,
        )

    def _split_generators(self, dl_manager: Any) -> dict[str, Iterator[tuple[int, dict[str, Any]]]]:
        wanted = self.generate()
        return {split: _rows(wanted[split]) for split in self.stored().values()}

    def _generate_examples(self) -> None:
        """Not used: the splits' generators already are in `_split_generators`."""

    def generate(self) -> dict[str, list[Question]]:
        """The questions of every split straight from the task, which the files must match."""
        task = find_task(self.builder_config.task)
        return {split: task.questions(self.builder_config.world, split) for split in SPLITS}

    def stored(self) -> dict[str, str]:
        """Split -> the split that holds it: an earlier one where the task's lists are the same."""
        firsts: dict[int, str] = {}
        wanted = self.generate()
        return {split: firsts.setdefault(id(wanted[split]), split) for split in SPLITS}


def _rows(questions: list[Question]) -> Iterator[tuple[int, dict[str, Any]]]:
    for index, question in enumerate(questions):
        yield index, {**dataclasses.asdict(question), "answers": list(question.answers)}


def prepared_builder(
    task: str, parameters: Mapping[str, Any], world: Any, *, data_dir: str
) -> TaskQuestions:
    """A builder whose files lie below `data_dir`, generated now if they are not there yet.

    `data.prepare_questions` calls this and checks that no row was lost.
    """
    tfds.disable_progress_bar()
    config = QuestionsConfig.of(task, parameters, world)
    builder = TaskQuestions(config=config, data_dir=data_dir, file_format="array_record")
    builder.download_and_prepare()
    return builder

"""Questions of any task as a tensorflow-datasets builder: array_record files, no TensorFlow.

Importing this module imports tensorflow_datasets; `tasks/stream.py` does so inside a function.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path

import tensorflow_datasets as tfds

from rapo_jax.io.files import locked
from rapo_jax.tasks import SPLITS, Question, find_task
from rapo_jax.tasks.schema import TaskWorld, check_ids

Examples = Iterator[tuple[int, dict[str, object]]]


@dataclasses.dataclass(kw_only=True)
class QuestionsConfig(tfds.core.BuilderConfig):
    """One data set: a task and its world."""

    task: str
    world: TaskWorld = dataclasses.field(repr=False, compare=False)

    @classmethod
    def of(cls, task: str, parameters: Mapping[str, object], world: TaskWorld) -> QuestionsConfig:
        """A config with a name of its contents, so that two worlds never share a folder.

        Contents are the hyper-parameters of the world, its seed included, and the reports of files:
        counts, malformed lines and a hash.
        """
        sources = find_task(task).sources(world)
        content = json.dumps([task, dict(parameters), *sources], sort_keys=True)
        digest = hashlib.sha256(content.encode()).hexdigest()[:12]
        name = f"{re.sub(r'[^A-Za-z0-9]', '_', task)}-{digest}"
        return cls(name=name, description=content, task=task, world=world)


class TaskQuestions(tfds.core.GeneratorBasedBuilder):
    """Splits train, eval and expert with rows id, question, answers, kind and source.

    Where the task gives one list for two splits, only the first is written.
    """

    VERSION = tfds.core.Version("1.0.0")
    builder_config: QuestionsConfig

    def _info(self) -> tfds.core.DatasetInfo:
        text = tfds.features.Text()
        names = [field.name for field in dataclasses.fields(Question)]
        return tfds.core.DatasetInfo(
            builder=self,
            description="Questions of a task family of rapo_jax, generated from its parameters.",
            features=tfds.features.FeaturesDict(
                {**dict.fromkeys(names, text), "answers": tfds.features.Sequence(text)}
            ),
            disable_shuffling=True,
        )

    def _split_generators(self, dl_manager: object) -> dict[str, Examples]:
        wanted = self.generate()
        return {split: _rows(wanted[split]) for split in self.stored().values()}

    def _generate_examples(self) -> None:
        """Not used: `_split_generators` already returns the generators."""

    def generate(self) -> dict[str, list[Question]]:
        """The questions of every split straight from the task, which the files must match."""
        task = find_task(self.builder_config.task)
        return {split: task.questions(self.builder_config.world, split) for split in SPLITS}

    def stored(self) -> dict[str, str]:
        """Split -> the split that holds it: an earlier one where the task's lists are the same."""
        firsts: dict[int, str] = {}
        wanted = self.generate()
        return {split: firsts.setdefault(id(wanted[split]), split) for split in SPLITS}


def _rows(questions: list[Question]) -> Examples:
    for index, question in enumerate(questions):
        yield index, {**dataclasses.asdict(question), "answers": list(question.answers)}


def prepared_builder(
    task: str, parameters: Mapping[str, object], world: TaskWorld, *, data_dir: str
) -> TaskQuestions:
    """A builder whose files are below `data_dir`, generated now if they are missing.

    `stream.prepare_questions` calls this and checks that no row was lost. Raises ValueError for a
    split without questions, or with an id that is blank or names two.
    """
    tfds.disable_progress_bar()
    config = QuestionsConfig.of(task, parameters, world)
    with locked(Path(data_dir) / "questions.lock"):  # another run may prepare the same
        builder = TaskQuestions(config=config, data_dir=data_dir, file_format="array_record")
        for split, questions in builder.generate().items():
            if not questions:
                raise ValueError(
                    f"task.name={task!r}: there are no questions in {split!r}; name a file that "
                    "holds some, raise the number of entities, or return some from your task"
                )
            check_ids(questions, f"task.name={task!r}: {split!r}")
        builder.download_and_prepare()
    return builder

"""The published question sets as tensorflow-datasets builders, one builder class, one config a set.

    tfds build rapo_jax/tasks/published/builder.py --config=gsm8k --manual_dir=FOLDER \\
        --file_format=array_record

FOLDER/gsm8k holds the publisher's files. The `tfds` command imports tensorflow, apache-beam and
mlcroissant; without them use `python -m rapo_jax.tasks.published` with the same flags. Importing
this module imports tensorflow_datasets.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import tensorflow_datasets as tfds

from rapo_jax.io.jsonl import LineReport
from rapo_jax.tasks.published import SETS, Row, read_rows
from rapo_jax.tasks.published.published import where_to_get

Examples = Iterator[tuple[int, dict[str, object]]]


class PublishedQuestions(tfds.core.GeneratorBasedBuilder):
    """Rows id, question, answers, metric, difficulty and source, of every split with files."""

    VERSION = tfds.core.Version("1.0.0")
    BUILDER_CONFIGS = [
        tfds.core.BuilderConfig(name=name, description=f"Offered by {published.offered}.")
        for name, published in SETS.items()
    ]
    MANUAL_DOWNLOAD_INSTRUCTIONS = "\n".join(
        f"{name}: {where_to_get(published, published.files, f'MANUAL_DIR/{name}')}"
        for name, published in SETS.items()
    )

    def _info(self) -> tfds.core.DatasetInfo:
        text = tfds.features.Text()
        return tfds.core.DatasetInfo(
            builder=self,
            description="Questions of published sets in one schema.",
            features=tfds.features.FeaturesDict(
                {**dict.fromkeys(Row._fields, text), "answers": tfds.features.Sequence(text)}
            ),
            disable_shuffling=True,
        )

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Examples]:
        """Splits with files. Raises ValueError, which names what to get, if there are none."""
        name = self.builder_config.name
        folder = dl_manager.manual_dir / name
        there = [
            split
            for split, layouts in SETS[name].files.items()
            if any(all(list(folder.glob(p)) for p in layout) for layout in layouts)
        ]
        if not there:
            raise ValueError(f"{name}: {where_to_get(SETS[name], SETS[name].files, folder)}")
        return {split: self._rows(split, dl_manager.manual_dir) for split in there}

    def _generate_examples(self) -> None:
        """Not used: `_split_generators` already returns the generators."""

    def _rows(self, split: str, manual_dir: Path) -> Examples:
        name, reports = self.builder_config.name, list[LineReport]()
        rows = read_rows(
            name, SETS[name], split, manual_dir, key="set", malformed="skip", reports=reports
        )
        for index, row in enumerate(rows):
            yield index, {**row._asdict(), "answers": list(row.answers)}
        for report in reports:
            print(report.summary(), flush=True)

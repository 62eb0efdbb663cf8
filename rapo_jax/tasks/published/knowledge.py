"""Multi-hop question sets over Wikipedia: HotpotQA, 2WikiMultihopQA, MuSiQue, Bamboogle."""

from __future__ import annotations

from rapo_jax.io.jsonl import text_of, texts_of
from rapo_jax.tasks.published.published import Published, Record, Taken, take_fields


def _hotpotqa(record: Record) -> Taken:
    """`level` is easy, medium or hard. The test split has no answers."""
    return take_fields(difficulty="level", name="_id" if "_id" in record else "id")(record)


def _musique(record: Record) -> Taken:
    """An id begins with the number of hops, as in 2hop__…; other names of the answer count too."""
    if record.get("answerable") is False:
        raise ValueError("is not answerable; use the files named musique_ans")
    name = text_of(record, "id")
    aliases = texts_of(record, "answer_aliases") if record.get("answer_aliases") else []
    answers = [text_of(record, "answer"), *aliases]
    return Taken(text_of(record, "question"), answers, name.partition("hop")[0] + "hop", name)


SETS = {
    "hotpotqa": Published(
        offered="hotpotqa.github.io or huggingface.co/datasets/hotpotqa/hotpot_qa",
        files={
            "train": [("hotpot_train_v1.1.json",), ("distractor/train-*.parquet",)],
            "dev": [
                ("hotpot_dev_distractor_v1.json",),
                ("hotpot_dev_fullwiki_v1.json",),
                ("distractor/validation-*.parquet",),
            ],
        },
        take=_hotpotqa,
        rows={"train": 90447, "dev": 7405},
    ),
    "twowiki": Published(
        offered="github.com/Alab-NII/2wikimultihop (the data archive, unpacked)",
        files={"train": [("train.json",)], "dev": [("dev.json",)]},
        take=take_fields(difficulty="type", name="_id"),
        rows={"train": 167454, "dev": 12576},
    ),
    "musique": Published(
        offered="github.com/StonyBrookNLP/musique (its download script)",
        files={
            "train": [("musique_ans_v1.0_train.jsonl",)],
            "dev": [("musique_ans_v1.0_dev.jsonl",)],
        },
        take=_musique,
        rows={"train": 19938, "dev": 2417},
    ),
    "bamboogle": Published(
        offered="github.com/ofirpress/self-ask (its sheet, saved as CSV) or "
        "huggingface.co/datasets/chiayewken/bamboogle",
        files={"test": [("Bamboogle Prerelease - Sheet1.csv",), ("data/test-*.parquet",)]},
        take=take_fields("Question", "Answer"),
        rows={"test": 125},
    ),
}

"""A few made records of every published set, written in the layout of its publisher."""

from __future__ import annotations

import base64
import csv
import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow
import pyarrow.parquet

CANARY = "made up canary 123"


def lines(path: Path, records: Sequence[Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")


def array(path: Path, records: Sequence[Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(records), encoding="utf-8")


def parquet(path: Path, records: Sequence[Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(list(records)), path)


def sheet(path: Path, records: Sequence[Mapping[str, str]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(records[0]))
        writer.writeheader()
        writer.writerows(records)


def each(pattern: str) -> Callable[[Path, Sequence[Any]], None]:
    """Writes each record to a separate file."""

    def write(path: Path, records: Sequence[Any]) -> None:
        for number, record in enumerate(records):
            file = path / pattern.format(number)
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(json.dumps(record, indent=4), encoding="utf-8")

    return write


def encrypted(text: str) -> str:
    """As the publisher does: XOR with the SHA-256 of the canary, then base64."""
    key = hashlib.sha256(CANARY.encode()).digest()
    hidden = bytes(byte ^ key[place % len(key)] for place, byte in enumerate(text.encode()))
    return base64.b64encode(hidden).decode()


class Fixture(NamedTuple):
    """`rows` are (question, answers, metric, difficulty) as they must come out."""

    set: str
    split: str
    file: str
    write: Callable[[Path, Sequence[Any]], None]
    records: Sequence[Any]
    rows: Sequence[tuple[str, tuple[str, ...], str, str]]


def gsm(n: int) -> dict[str, str]:
    return {"question": f"{n} eggs?", "answer": f"{n}*2=<<{n}*2={2 * n}>>{2 * n}\n#### 1,{n}00"}


def aime(problem: str, answer: str) -> dict[str, Any]:
    return {problem: "P?", answer: 73, "ID": "2024-I-1", "Solution": "…"}


def wiki(name: str, **more: Any) -> dict[str, Any]:
    about = {"context": [["Title", ["A sentence."]]], "supporting_facts": [["Title", 0]]}
    return {"_id": name, "question": f"{name}?", "answer": f"of {name}", **about, **more}


def walk(difficulty: str) -> dict[str, Any]:
    info = {"hop": "multi-source", "domain": "game", "lang": "en", "difficulty_level": difficulty}
    return {"question": f"{difficulty}?", "answer": "x", "root_url": "https://a.b/", "info": info}


def task(name: str, level: int, file: str = "", answer: str = "17") -> dict[str, Any]:
    about = {"task_id": name, "Level": level, "file_name": file, "Annotator Metadata": {"Steps": 1}}
    return {"Question": f"{name}?", "Final answer": answer, **about}


def chat(question: str, gold: Any, ability: str) -> dict[str, Any]:
    return {
        "data_source": "made",
        "prompt": [
            {"role": "system", "content": "Answer in \boxed{answer here}."},
            {"role": "user", "content": question},
        ],
        "ability": ability,
        "reward_model": {"ground_truth": gold, "style": "rule"},
        "extra_info": {"index": 1, "question": question, "split": "train"},
    }


def competition(level: str, solution: str) -> dict[str, str]:
    return {"problem": level + "?", "level": level, "type": "Algebra", "solution": solution}


GSM = [("1 eggs?", ("1100",), "math", ""), ("2 eggs?", ("1200",), "math", "")]
MATH = [
    competition("Level 1", r"So $\boxed{3}$, no: $\boxed{\frac{1}{2}}$."),
    competition("Level 5", r"It is $\fbox{7}$."),
    competition("Level ?", r"Hence $\boxed 4$."),
]
MATH_ROWS = [
    ("Level 1?", (r"\frac{1}{2}",), "math", "1"),
    ("Level 5?", ("7",), "math", "5"),
    ("Level ??", ("4",), "math", "?"),
]
P73 = [("P?", ("73",), "math", "")]
GAIA = [task("a", 1), task("b", 2, "b.xlsx"), task("c", 3), task("d", 1), task("e", 2)]
GAIA_A, GAIA_B, GAIA_C, GAIA_D, GAIA_E = (
    (f"{name}?", ("17",), "f1", level) for name, level in zip("abcde", "12312", strict=True)
)
ROWS_WITHOUT_FILE = [GAIA_A, GAIA_C, GAIA_D, GAIA_E]
WALK = [walk("Easy"), walk("hard"), walk("easy"), walk("medium")]

FIXTURES = [
    Fixture("gsm8k", "train", "train.jsonl", lines, [gsm(1), gsm(2)], GSM),
    Fixture("gsm8k", "test", "main/test-00000-of-00001.parquet", parquet, [gsm(1), gsm(2)], GSM),
    Fixture("math", "train", "", each("train/algebra/{}.json"), MATH, MATH_ROWS),
    Fixture("math", "test", "algebra/test-00000-of-00001.parquet", parquet, MATH, MATH_ROWS),
    Fixture(
        "math500",
        "test",
        "test.jsonl",
        lines,
        [{"problem": "P?", "solution": "…", "answer": r"\pi", "subject": "S", "level": 2,
          "unique_id": "test/algebra/1.json"}],
        [("P?", (r"\pi",), "math", "2")],
    ),
    Fixture("aime24", "test", "data/train-0.parquet", parquet, [aime("problem", "answer")], P73),
    Fixture(
        "aime24", "test", "aime_2024_problems.parquet", parquet, [aime("Problem", "Answer")], P73
    ),
    Fixture(
        "aime25", "test", "test.jsonl", lines, [{"question": "P?", "answer": "073"},
        {"problem": "Q?", "answer": r"336^\circ"}], [*P73, ("Q?", (r"336^\circ",), "math", "")],
    ),
    Fixture(
        "hotpotqa",
        "dev",
        "hotpot_dev_distractor_v1.json",
        array,
        [wiki("5a8b", type="comparison", level="hard"), wiki("5a8c", type="bridge", level="easy")],
        [("5a8b?", ("of 5a8b",), "f1", "hard"), ("5a8c?", ("of 5a8c",), "f1", "easy")],
    ),
    Fixture(
        "hotpotqa",
        "train",
        "distractor/train-00000-of-00002.parquet",
        parquet,
        [{"id": "5a8d", "question": "H?", "answer": "yes", "type": "bridge", "level": "medium"}],
        [("H?", ("yes",), "f1", "medium")],
    ),
    Fixture(
        "twowiki",
        "dev",
        "dev.json",
        array,
        [wiki("8813", type="compositional", evidences=[["a", "b", "c"]])],
        [("8813?", ("of 8813",), "f1", "compositional")],
    ),
    Fixture(
        "musique",
        "dev",
        "musique_ans_v1.0_dev.jsonl",
        lines,
        [
            {"id": "2hop__1_2", "question": "M?", "answer": "UK", "answerable": True,
             "answer_aliases": ["Britain", "UK"], "paragraphs": []},
            {"id": "4hop1__1_2", "question": "N?", "answer": "x", "answer_aliases": []},
        ],
        [("M?", ("UK", "Britain"), "f1", "2hop"), ("N?", ("x",), "f1", "4hop")],
    ),
    Fixture(
        "bamboogle",
        "test",
        "Bamboogle Prerelease - Sheet1.csv",
        sheet,
        [{"Question": "Who, then?", "Answer": "Émile"}],
        [("Who, then?", ("Émile",), "f1", "")],
    ),
    Fixture(
        "webwalkerqa",
        "main",
        "data/main-00000-of-00001.jsonl",
        lines,
        WALK,
        [(f"{d}?", ("x",), "f1", d.lower()) for d in ("Easy", "hard", "easy", "medium")],
    ),
    Fixture(
        "webwalkerqa",
        "easy",
        "data/main-00000-of-00001.jsonl",
        lines,
        WALK,
        [(f"{d}?", ("x",), "f1", "easy") for d in ("Easy", "easy")],
    ),
    Fixture(
        "simpleqa",
        "test",
        "simple_qa_test_set.csv",
        sheet,
        [{"metadata": "{'topic': 'Art'}", "problem": 'Which "one"?', "answer": "2, 3"}],
        [('Which "one"?', ("2, 3",), "f1", "")],
    ),
    Fixture(
        "gaia",
        "validation",
        "2023/validation/metadata.parquet",
        parquet,
        GAIA,
        [GAIA_A, GAIA_B, GAIA_C, GAIA_D, GAIA_E],
    ),
    Fixture(
        "gaia", "text", "2023/validation/metadata.jsonl", lines, GAIA, ROWS_WITHOUT_FILE
    ),
    Fixture("gaia", "level1", "2023/validation/metadata.jsonl", lines, GAIA, [GAIA_A, GAIA_D]),
    Fixture("gaia", "level2", "2023/validation/metadata.jsonl", lines, GAIA, [GAIA_E]),
    Fixture(
        "browsecomp",
        "test",
        "browse_comp_test_set.csv",
        sheet,
        [{"problem": encrypted("A très long " * 9 + "question?"), "answer": encrypted("Plain"),
          "problem_topic": "Art", "canary": CANARY}],
        [("A très long " * 9 + "question?", ("Plain",), "f1", "")],
    ),
    Fixture(
        "toolstar",
        "train",
        "train_10k.parquet",
        parquet,
        [
            chat("In \boxed{} give x.", "\frac{1}{2}", "math"),
            chat("Who?", "A<|answer_split|>B", "qa"),
        ],
        [
            ("In \\boxed{} give x.", ("\\frac{1}{2}",), "math", "math"),
            ("Who?", ("A", "B"), "f1", "qa"),
        ],
    ),
    Fixture(
        "asearcher",
        "base",
        "ASearcher-Base-35k.jsonl",
        lines,
        [
            {"question": "A?", "answer": ["x"], "aug_answer": ["y", "x"], "source": "made",
             "qid": "1"},
            {"question": "B?", "answer": "z"},
        ],
        [("A?", ("x", "y"), "f1", "made"), ("B?", ("z",), "f1", "")],
    ),
    Fixture(
        "webdancer",
        "train",
        "sample_qa.jsonl",
        lines,
        [{"question": "D?", "answer": "e"}],
        [("D?", ("e",), "f1", "")],
    ),
]  # fmt: skip

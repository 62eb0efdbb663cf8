"""Teacher, judge, search, caches and data at a fault rate of 0.3: nothing else changes."""

from __future__ import annotations

import json
import sqlite3
import threading
import time
from collections import Counter

import pytest

from rapo_jax.config import JudgeSettings
from rapo_jax.io.jsonl import LineReport, read_jsonl
from rapo_jax.scoring.judge import Answered, ChatJudge
from tests.buffer.chats import ANSWER, SEARCH, chat, make, sample
from tests.faults.injected import Faults
from tests.tools.services import search, web

COUNT = 60


class Unreliable:
    """A server's answers: some fail in the ways of KINDS, `fatal` ones for the same text always."""

    KINDS = ("busy", "broken", "slow", "empty", "torn")

    def __init__(self, answer, *, fatal=""):
        self._answer, self._fatal, self._lock = answer, fatal, threading.Lock()
        self._asked: Counter[str] = Counter()
        self.faults = Faults(*self.KINDS)
        self.good = 0

    def __call__(self, handler, body):
        text = json.dumps(body)
        if self._fatal and self._fatal in text:
            return 500, "always"
        with self._lock:
            self._asked[text] += 1
            first = self._asked[text] == 1
        match self.faults.draw(text) if first else "":  # a second try succeeds, a slow one too
            case "busy":
                return 429, "busy"
            case "broken":
                return 500, "broken"
            case "slow":
                time.sleep(0.05)
            case "empty":
                return chat("")
            case "torn":
                handler.wfile.write(b'HTTP/1.0 200 OK\r\n\r\n{"choices": [')
                return None
        with self._lock:
            self.good += 1
        return self._answer(handler, body)


def test_a_teacher_that_fails_now_and_then_gives_every_trajectory_once(serve, tmp_path):
    def answer(handler, body):
        return chat(SEARCH if len(body["messages"]) == 2 else ANSWER)

    server = Unreliable(answer, fatal="q7?")
    endpoint, budget = make(serve(server), tmp_path)
    names = [f"q{i}" for i in range(COUNT) if not str(i).startswith("7") or i == 7]
    kept, outcome = sample(endpoint, names, concurrency=3)
    assert (outcome.finished, outcome.failed) == (len(names) - 1, 1)
    assert sorted(kept) == sorted(set(names) - {"q7"})
    whole = [SEARCH, "<result> saw a b</result>", ANSWER]
    assert all([s.text for s in segments] == whole for segments in kept.values())
    faults = server.faults.counts
    assert min(faults[kind] for kind in server.KINDS) > 0
    assert budget.calls == server.good + 1  # tries are no calls; q7 has one
    lines = [json.loads(line) for line in (tmp_path / "spent.jsonl").read_text().splitlines()]
    assert [sum(column) for column in zip(*lines, strict=True)] == [budget.calls, budget.tokens]


def test_a_judge_that_fails_now_and_then_gives_the_same_verdicts(serve, tmp_path):
    def answer(handler, body):
        odd = int(body["messages"][0]["content"].split("number ")[1].split("\n")[0]) % 2
        return chat("Correct" if odd else "Incorrect")

    server = Unreliable(answer, fatal="number 13\\n")
    settings = JudgeSettings(serve(server), "m", "", deadline_s=10.0, concurrency=3)
    judge = ChatJudge(settings, cache=tmp_path / "judge.sqlite", rule="strict", backoff_s=0.01)
    answered = [Answered("q", ["x"], f"number {i}") for i in range(COUNT)]
    verdicts = [judgement.verdict for judgement in judge(answered)]
    wanted = ["correct" if i % 2 else "incorrect" for i in range(COUNT)]
    assert verdicts == [*wanted[:13], "failed", *wanted[14:]]
    assert judge.counts["failed"] == 1 and server.good == COUNT - 1
    assert judge(answered) == judge(answered) and server.good == COUNT - 1  # all from the cache
    judge.close()


def test_a_cache_of_which_a_third_is_damaged_is_asked_for_those_again(serve, tmp_path):
    asked = []

    def answer(handler, body):
        asked.append(body["q"])
        return web("serper")(handler, body)

    path = tmp_path / "cache.sqlite"
    url, queries = serve(answer), [f"query {i}" for i in range(COUNT)]
    first = search("serper", url, cache=str(path))
    wanted = first(queries)
    first.close()
    faults = Faults("", b"\xff\xfe", "[1", "null", b"\x00")
    with sqlite3.connect(path) as database:
        (table,) = database.execute("select name from sqlite_master where type='table'").fetchone()
        key, value = [row[1] for row in database.execute(f"pragma table_info({table})")][:2]
        for (name,) in database.execute(f"select {key} from {table}").fetchall():
            if (bad := faults.draw(name)) != "":
                database.execute(f"update {table} set {value}=? where {key}=?", (bad, name))
    del asked[:]
    second = search("serper", url, cache=str(path))
    assert second(queries) == wanted
    assert len(asked) == COUNT - faults.counts[""] > 5
    assert second(queries) == wanted and len(asked) == COUNT - faults.counts[""]
    second.close()


def spoil(line, kind):
    match kind:
        case "torn":
            return line[: len(line) // 2]
        case "bytes":
            return b"\xff\xfe" + line
        case "deep":
            return b"[" * 50_000
        case "array":
            return b"[1]"
        case "lacks":
            return b'{"question": "Who?"}'
        case "long":
            return b'"' + b"x" * 5000
    return line


def test_a_file_of_which_a_third_is_damaged_gives_the_other_lines_and_counts_these(tmp_path):
    kinds = ("torn", "bytes", "deep", "array", "lacks", "long")
    rows = [{"id": i, "answer": "a" * (i % 30)} for i in range(500)]
    faults, lines, wanted = Faults(*kinds), [], []
    for row in rows:
        kind = faults.draw(str(row["id"]))
        lines.append(spoil(json.dumps(row).encode(), kind))
        wanted += [] if kind else [row]
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b"\n".join(lines) + b"\n")

    def parse(row):
        if "id" not in row:
            raise ValueError("no id")
        return dict(row)

    report = LineReport(str(path))
    found = read_jsonl(
        path, parse, malformed="skip", key="task.malformed", report=report, max_line_bytes=4000
    )
    assert list(found) == wanted
    bad = faults.counts.total() - faults.counts[""]
    assert (report.lines, report.records, report.malformed) == (500, len(wanted), bad)
    assert min(faults.counts[kind] for kind in kinds) > 0
    with pytest.raises(ValueError, match="malformed"):
        list(read_jsonl(path, parse, malformed="fail", key="task.malformed", report=report))

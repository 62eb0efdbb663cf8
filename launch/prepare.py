"""Lists the files and services that a run needs, and how to get those that are missing.

    python launch/prepare.py --config=configs/qwen7b.py

Takes the same flags as rapo_jax.main. Downloads nothing and makes no paid web search. Exit status:
0 if everything is there, 1 if something is missing, 2 if the config is not valid.
"""

from __future__ import annotations

import copy
import dataclasses
import importlib.util
import os
import re
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from rapo_jax.config import Settings
from rapo_jax.config.read import read_settings

HUB = {
    "Qwen2.5-3B-Instruct": "Qwen/Qwen2.5-3B-Instruct",
    "Qwen2.5-7B-Instruct": "Qwen/Qwen2.5-7B-Instruct",
    "Meta-Llama-3-8B-Instruct": "meta-llama/Meta-Llama-3-8B-Instruct (after asking for access)",
    "all-MiniLM-L6-v2": "sentence-transformers/all-MiniLM-L6-v2",
}
"""Folder name -> repository of the Hugging Face hub."""
TRACES = (
    "JSON lines of an off-policy agent's traces, for example {question, response, reward} or "
    "{key, value, reward}; rapo_jax/buffer/sources.py lists the forms. The paper sampled "
    "AEPO-Qwen3-14B, 16 trajectories a question. Or sample a policy that you trained: "
    "--config.buffer.agent=checkpoint --config.buffer.checkpoint=WORKDIR --config.buffer.files='()'"
)

AGENT = (
    "the workdir of a trained run or a cold start (it holds a folder checkpoints), or a Hugging "
    "Face folder (it holds *.safetensors)"
)
INDEX = (
    "build it: python -m rapo_jax.main --config=CONFIG --workdir=WORKDIR "
    "--config.stages=\"('search_index',)\" --config.search_index.corpus=CORPUS.jsonl "
    "--config.search_index.folder=FOLDER"
)


class Need(NamedTuple):
    """Something that a run needs."""

    key: str
    what: str
    missing: str
    """How to get it, or '' if it is there."""


def needs(s: Settings) -> Iterator[Need]:
    """Everything on disk or on the network that a run with these settings opens."""
    if s.model.folder:
        wanted = ("config.json", "*.safetensors", "tokenizer.json")
        yield _folder("model.folder", s.model.folder, wanted)
    if s.tokenizer.folder:
        yield _folder("tokenizer.folder", s.tokenizer.folder, ("tokenizer.json",))
    if s.task.name == "dataset" and not s.suites_alone:
        yield from _questions(s)
    if "evaluate" in s.stages:
        yield from _suites(s)
    yield from _search(s)
    if s.retrieval.encoder == "minilm":
        yield _encoder(s.retrieval.encoder_folder)
    yield from _buffer(s)
    if s.task.metric == "math" and importlib.util.find_spec("math_verify") is None:
        yield Need("task.metric", "math", "pip install math-verify")


def _folder(key: str, folder: str, patterns: tuple[str, ...]) -> Need:
    absent = [pattern for pattern in patterns if not any(Path(folder).glob(pattern))]
    if not absent:
        return Need(key, folder, "")
    where = HUB.get(Path(folder).name, "")
    how = (
        f"hf download {where} --local-dir {folder}" if where else "put a Hugging Face folder there"
    )
    return Need(key, folder, f"no {' and '.join(absent)} in it; {how}")


def _questions(s: Settings) -> Iterator[Need]:
    d = s.task.dataset
    for key, wanted in (("task.dataset.train", d.train), ("task.dataset.eval", d.eval)):
        for part in filter(None, map(_whole, wanted.split(","))):
            yield _set(key, part, part, d.manual_dir)


def _suites(s: Settings) -> Iterator[Need]:
    from rapo_jax.suites.catalogue import SUITES

    e = s.evaluate
    for name in map(_whole, e.suites):
        listed = SUITES.get(name)
        source = f"{listed.set}:{listed.split}" if listed else name
        yield _set("evaluate.suites", name, source, e.manual_dir or s.task.dataset.manual_dir)
    if e.suites and e.judge.url:
        yield from _key("evaluate.judge.key_variable", e.judge.key_variable)


def _whole(name: str) -> str:
    """The name without a final '[:N]', which takes the first N questions."""
    return re.sub(r"\[:\d+\]$", "", name.strip())


def _set(key: str, what: str, source: str, manual_dir: str) -> Need:
    """`source` is a file of questions, or a published set and its split, such as 'gsm8k:test'."""
    from rapo_jax.tasks.published import SETS, find_files

    published, _, split = source.partition(":")
    if Path(source).is_file():
        return Need(key, what, "")
    if published not in SETS:
        return Need(key, what, "no such file, and no published set of this name")
    try:
        find_files(published, SETS[published], split, manual_dir, key=key)
    except ValueError as error:
        return Need(key, what, str(error).partition("': ")[2])
    return Need(key, what, "")


def _key(key: str, variable: str) -> Iterator[Need]:
    """The environment variable with the key of a service, if it needs one."""
    if variable:
        yield Need(key, variable, "" if os.environ.get(variable) else f"export {variable}=…")


def _search(s: Settings) -> Iterator[Need]:
    if s.tools.search.kind == "local":
        yield from _local_search(s)
    else:
        yield from _search_service(s)


def _local_search(s: Settings) -> Iterator[Need]:
    from rapo_jax.search.index.files import MANIFEST

    index, documents = s.tools.search.index, s.task.dataset.documents
    if index:
        yield Need("tools.search.index", index, "" if (Path(index) / MANIFEST).is_file() else INDEX)
    elif s.task.name == "dataset" and "search" not in dict(s.tools.user_tools):
        how = "JSON lines {id, contents} or {id, title, text} of your passages"
        yield Need("task.dataset.documents", documents, "" if Path(documents).is_file() else how)


def _search_service(s: Settings) -> Iterator[Need]:
    from rapo_jax.tools.search_client import HttpSearch

    search = s.tools.search
    what = f"{search.kind} {search.url or '(its public address)'}"
    if search.cache:
        folder = Path(search.cache).absolute().parent
        how = "" if folder.is_dir() else f"mkdir -p {folder}"
        yield Need("tools.search.cache", search.cache, how)
    if search.key_variable and not os.environ.get(search.key_variable):
        yield from _key("tools.search.key_variable", search.key_variable)
        return
    try:
        plain = dataclasses.replace(search, cache="")
        tool = HttpSearch(plain, passages=s.tools.passages, fits=lambda text: True)
    except ValueError as error:
        key, _, how = str(error).partition("=")
        yield Need(key, what, how.partition(": ")[2])
        return
    try:
        if search.kind == "retrieval":
            tool.check()
        yield Need("tools.search", what, "")
    except ValueError:
        yield Need(
            "tools.search.url",
            what,
            "no server answers; serve a corpus (the paper: Wikipedia of 2018, wiki-18.jsonl): "
            "python -m rapo_jax.search.server --corpus=CORPUS.jsonl, or any server "
            "that speaks Search-R1's /retrieve",
        )
    finally:
        tool.close()


def _encoder(folder: str) -> Need:
    from rapo_jax.model.encoder import find_minilm

    if folder:
        wanted = ("config.json", "model.safetensors", "tokenizer.json")
        return _folder("retrieval.encoder_folder", folder, wanted)
    try:
        return Need("retrieval.encoder", str(find_minilm()), "")
    except FileNotFoundError as error:
        return Need("retrieval.encoder", "minilm", str(error))


def _buffer(s: Settings) -> Iterator[Need]:
    b = s.buffer
    if b.folder and (Path(b.folder) / "done.json").is_file():
        yield Need("buffer.folder", b.folder, "")
        return
    if "buffer" not in s.stages:
        return
    for file in b.files:
        yield Need("buffer.files", file, "" if Path(file).is_file() else TRACES)
    for folder in b.checkpoints if "checkpoint" in b.agents else ():
        there = any(any(Path(folder).glob(name)) for name in ("checkpoints", "*.safetensors"))
        yield Need("buffer.checkpoint", folder, "" if there else AGENT)
    if "endpoint" in b.agents:
        yield from _key("buffer.endpoint.key_variable", b.endpoint.key_variable)


def read(config: dict[str, object]) -> Settings:
    """Checked settings of a config; traces and the endpoint's key may still be missing."""
    config = copy.deepcopy(config)
    wanted = config["buffer"]
    files, variable = tuple(wanted["files"]), wanted["endpoint"]["key_variable"]
    wanted["files"] = tuple(__file__ for _ in files)
    wanted["endpoint"]["key_variable"] = ""
    settings = read_settings(config)
    endpoint = dataclasses.replace(settings.buffer.endpoint, key_variable=variable)
    buffer = dataclasses.replace(settings.buffer, files=files, endpoint=endpoint)
    return dataclasses.replace(settings, buffer=buffer)


def report(needed: Sequence[Need]) -> int:
    """Prints a line for each need; returns the number of missing ones."""
    missing = [need for need in needed if need.missing]
    for need in needed:
        print(f"{'missing' if need.missing else 'ok':8}{need.key}: {need.what}")
        if need.missing:
            print(f"        -> {need.missing}")
    if missing:
        print(f"{len(missing)} of {len(needed)} missing")
    else:
        print(f"all {len(needed)} are there: the run can start")
    return len(missing)


def main(arguments: Sequence[str]) -> None:
    from rapo_jax.main import read_flags, resolve_flags

    resolved = resolve_flags(read_flags(arguments))
    try:
        settings = read(resolved.config)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from error
    raise SystemExit(1 if report(list(needs(settings))) else 0)


if __name__ == "__main__":
    main(sys.argv[1:])

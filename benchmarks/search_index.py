"""Measures the search index on disk: seconds, memory and bytes to build; speed and recall.

    python benchmarks/search_index.py                                   # 200,000 passages, built-in
    python benchmarks/search_index.py --encoder=minilm --passages=2000  # MiniLM, or --folder

Prints a line for the machine with its load, the build and the search. Passages are made of
synthetic words, some common and most rare, by subjects. The build runs in a separate process, to
measure its peak memory.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.python_tool import machine

WORDS = 50_000
SUBJECTS = 2_000
WORDS_OF_SUBJECT = 60
LENGTH = 100
QUERIES = 200
AT = 3


def write_corpus(path: Path, count: int) -> None:
    """Passages of about LENGTH words: half are a subject's words, half common ones (Zipf)."""
    rng = np.random.default_rng(0)
    letters = np.array(list("bcdfghklmnprstvz")), np.array(list("aeiou"))
    words = [
        "".join(map("".join, zip(*(rng.choice(part, n) for part in letters), strict=True)))
        for n in rng.integers(1, 5, WORDS)
    ]
    share = 1 / np.arange(1, WORDS + 1)
    share /= share.sum()
    of_subject = rng.integers(0, WORDS, (SUBJECTS, WORDS_OF_SUBJECT))
    with open(path, "w", encoding="utf-8") as file:
        for i in range(count):
            common = rng.choice(WORDS, LENGTH // 2, p=share)
            special = rng.choice(of_subject[i % SUBJECTS], LENGTH // 2)
            text = " ".join(words[j] for j in rng.permutation(np.concatenate([common, special])))
            contents = f'"{words[of_subject[i % SUBJECTS, 0]]} {i}"\n{text}'
            file.write(json.dumps({"id": str(i), "contents": contents}) + "\n")


def build(arguments: argparse.Namespace) -> None:
    """Runs the stage in the measured process; its last line is the seconds and the peak memory."""
    from configs import default
    from rapo_jax.config.read import read_settings
    from rapo_jax.stages.search_index import index_corpus

    config = default.get_config()
    config.stages = ("search_index",)
    config.search_index.update(
        corpus=arguments.build,
        encoder=arguments.encoder,
        encoder_folder=arguments.folder,
        memory_mb=arguments.memory_mb,
    )
    workdir = Path(arguments.build).parent
    started = time.perf_counter()
    index_corpus(read_settings(config.to_dict()), workdir)
    seconds = time.perf_counter() - started
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print(json.dumps({"seconds": seconds, "peak": peak}))


def search(folder: Path) -> str:
    """Queries per second, one by one, and recall against an exact search."""
    from rapo_jax.search.index.search import open_index

    index = open_index(folder)
    rng = np.random.default_rng(1)
    queries = []
    for place in rng.integers(0, len(index), QUERIES):
        words = index.texts[int(place)].split()
        queries.append(" ".join(rng.choice(words, 8, replace=False)))
    index(queries[:5], AT)  # warm-up
    took_s = []
    for query in queries:
        started = time.perf_counter()
        index([query], AT)
        took_s.append(time.perf_counter() - started)
    query_BE = np.asarray(index.encode(queries), np.float32)
    wanted = index.exact(query_BE, AT)
    hits_B = [index.nearest(row, AT) for row in query_BE]
    recall = np.mean(
        [
            min(1, sum(score >= best[-1][1] - 1e-6 for _, score in hits) / len(best))
            for hits, best in zip(hits_B, wanted, strict=True)
        ]
    )
    return (
        f"search: {len(queries) / sum(took_s):.0f} queries/s one by one (median "
        f"{1e3 * float(np.median(took_s)):.1f} ms, encoder included), recall@{AT} {recall:.3f} "
        f"of {QUERIES} queries of 8 words against exact search; leaves searched "
        f"{index.share:.0%}; {sum(s.leaves > 0 for s in index.shards)} of {len(index.shards)} "
        "shards have a tree"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--passages", type=int, default=200_000)
    parser.add_argument("--encoder", choices=("ngram", "minilm"), default="ngram")
    parser.add_argument("--folder", default="", help="of MiniLM; '' = the installed package")
    parser.add_argument("--memory_mb", type=int, default=1024)
    parser.add_argument("--build", default="", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.build:
        build(arguments)
        return
    print(machine())
    with tempfile.TemporaryDirectory() as name:
        corpus, folder = Path(name) / "corpus.jsonl", Path(name) / "search_index"
        write_corpus(corpus, arguments.passages)
        command = [sys.executable, __file__, *sys.argv[1:], f"--build={corpus}"]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
        *lines, last = done.stdout.splitlines()
        print("\n".join(lines))
        measured = json.loads(last)
        disk = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
        print(
            f"build: {arguments.passages} passages, {arguments.encoder}: "
            f"{measured['seconds']:.0f} s, peak RSS {measured['peak'] / 2**20:.0f} MiB (of it "
            f"search_index.memory_mb={arguments.memory_mb} for a shard), {disk / 1e6:.0f} MB on "
            f"disk of {corpus.stat().st_size / 1e6:.0f} MB of corpus"
        )
        print(search(folder))


if __name__ == "__main__":
    main()

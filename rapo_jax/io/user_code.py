"""User code by config path: `module:name` of a tool, a reward or a task.

It is trusted: it is imported into the trainer's process and runs there, unlike a model's programs.
"""

from __future__ import annotations

import difflib
import importlib
import inspect
import os
import re
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

_PATH = re.compile(r"[^\W\d]\w*(?:\.[^\W\d]\w*)*:[^\W\d]\w*")


def load(path: str, *, key: str) -> Any:
    """The object at 'module:name', the value `path` of the config key `key`.

    The module may be a file of the working directory, or of the config file's folder (main.py puts
    that on sys.path), or an installed one.

    Raises:
        ValueError: it cannot be imported, or has no such name.
    """
    where = f"{key}={path!r}"
    module_name, _, name = path.partition(":")
    if not _PATH.fullmatch(path) or module_name.endswith(".py"):
        raise ValueError(f"{where}: write module:name, such as 'my_code:calculate' of my_code.py")
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())
    try:
        module = importlib.import_module(module_name)
    except (Exception, SystemExit) as error:
        missing = error.name if isinstance(error, ModuleNotFoundError) else None
        if missing and f"{module_name}.".startswith(f"{missing}."):
            raise ValueError(
                f"{where}: there is no module {missing}; put {missing.replace('.', '/')}.py into "
                "the working directory or beside the config file, or install it"
            ) from None
        failure = describe_error(error)
        raise ValueError(f"{where}: importing {module_name} fails with {failure}") from error
    if not hasattr(module, name):
        near = difflib.get_close_matches(name, vars(module), n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        file = getattr(module, "__file__", None) or module_name
        raise ValueError(f"{where}: {file} holds no {name!r}{hint}")
    return getattr(module, name)


def load_function(
    path: str, *, key: str, takes: tuple[str, ...], may_be_async: bool = False
) -> Callable[..., Any]:
    """The function at 'module:name'; raises ValueError unless it takes the arguments `takes`."""
    function = load(path, key=key)
    wanted = f"{key}={path!r}: must be a function of ({', '.join(takes)})"
    if not callable(function):
        raise ValueError(f"{wanted}, and is a {type(function).__name__}")
    if inspect.iscoroutinefunction(function) and not may_be_async:
        raise ValueError(f"{wanted}, and is a coroutine; write it without async")
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):  # of code in C, which may have none
        return function
    try:
        signature.bind(*takes)
    except TypeError as error:
        raise ValueError(f"{wanted}, and takes {signature} ({error})") from None
    return function


@contextmanager
def exit_is_an_error() -> Iterator[None]:
    """Raises RuntimeError where user code inside raises SystemExit, as `sys.exit` does."""
    try:
        yield
    except SystemExit as error:
        raise RuntimeError(
            f"user code ended the program with {describe_error(error)}; raise an exception instead"
        ) from error


def describe_error(error: BaseException) -> str:
    """An error in one line, with the file and line that raised it."""
    text = " ".join(f"{type(error).__name__}: {error}".split())
    frames = traceback.extract_tb(error.__traceback__)
    if isinstance(error, SyntaxError) or not frames:
        return text  # a SyntaxError's message has its place
    return f"{text} ({os.path.basename(frames[-1].filename)}, line {frames[-1].lineno})"

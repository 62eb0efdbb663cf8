"""A user's own code by config path: `module:name` of a tool, a reward or a task.

It is trusted: it is imported into the trainer's process and runs there, unlike what a model writes.
"""

from __future__ import annotations

import difflib
import importlib
import inspect
import os
import re
import sys
import traceback
from collections.abc import Callable
from typing import Any

_PATH = re.compile(r"[^\W\d]\w*(?:\.[^\W\d]\w*)*:[^\W\d]\w*")


def load(path: str, *, key: str) -> Any:
    """What `path`, the value of config key `key`, names: 'module:name'.

    The module may be a file of the working directory, or of the config file's folder (main.py puts
    that on sys.path), or any installed one.

    Raises:
        ValueError: it cannot be imported, or holds no such name.
    """
    told = f"{key}={path!r}"
    module_name, _, name = path.partition(":")
    if not _PATH.fullmatch(path) or module_name.endswith(".py"):
        raise ValueError(f"{told}: write module:name, such as 'my_code:calculate' of my_code.py")
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())
    try:
        module = importlib.import_module(module_name)
    except (Exception, SystemExit) as error:
        missing = error.name if isinstance(error, ModuleNotFoundError) else None
        if missing and f"{module_name}.".startswith(f"{missing}."):
            raise ValueError(
                f"{told}: there is no module {missing}; put {missing.replace('.', '/')}.py into "
                "the working directory or beside the config file, or install it"
            ) from None
        failure = described(error)
        raise ValueError(f"{told}: importing {module_name} fails with {failure}") from error
    if not hasattr(module, name):
        near = difflib.get_close_matches(name, vars(module), n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        where = getattr(module, "__file__", None) or module_name
        raise ValueError(f"{told}: {where} holds no {name!r}{hint}")
    return getattr(module, name)


def load_function(path: str, *, key: str, takes: tuple[str, ...]) -> Callable[..., Any]:
    """A function that can be called with as many values as `takes` names; see `load`."""
    function = load(path, key=key)
    wanted = f"{key}={path!r}: must be a function of ({', '.join(takes)})"
    if not callable(function):
        raise ValueError(f"{wanted}, and is a {type(function).__name__}")
    if inspect.iscoroutinefunction(function):
        raise ValueError(f"{wanted}, and is a coroutine; write it without async")
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):  # of code in C, that has none
        return function
    try:
        signature.bind(*takes)
    except TypeError as error:
        raise ValueError(f"{wanted}, and takes {signature} ({error})") from None
    return function


def described(error: BaseException) -> str:
    """An error in one line with the place it comes from, for the user."""
    text = " ".join(f"{type(error).__name__}: {error}".split())
    frames = traceback.extract_tb(error.__traceback__)
    if isinstance(error, SyntaxError) or not frames:
        return text  # it names its place itself
    return f"{text} ({os.path.basename(frames[-1].filename)}, line {frames[-1].lineno})"

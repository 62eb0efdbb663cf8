"""Runs one program as a notebook cell, in the confined child of `worker.py`.

Only the standard library, as in `worker.py`.
"""

import ast
import builtins
import os
import random
import sys
import traceback

NAME = "<python>"
ERROR_EXIT = 1
FRAMES, LINE_CHARS = 3, 80
LIBRARY = os.path.dirname(os.__file__)
FENCE = "```"
# As in a script: this interpreter runs without `site`, which defines them.
builtins.__dict__.update(exit=sys.exit, quit=sys.exit)
ORIGINALS = dict(builtins.__dict__)
ANYTHING, EVALUATE, SHOW = BaseException, eval, repr  # a program may change the builtins


def run(code: str) -> int:
    """Runs a program and prints the value of a last expression; returns the exit status."""
    code = without_fence(code)
    sys.stdin = open(0, closefd=False)
    out = open(1, "w", encoding="utf-8", errors="replace", closefd=False)
    sys.stdout = sys.stderr = out
    sys.modules["__main__"] = module = type(sys)("__main__")
    exit_status = 0
    try:
        body = ast.parse(code, NAME).body
        shown = None
        if body and isinstance(last := body[-1], ast.Expr):
            body.pop()
            shown = compile(ast.Expression(last.value), NAME, "eval")
        exec(compile(ast.Module(body, []), NAME, "exec"), module.__dict__)
        if shown is not None and (value := EVALUATE(shown, module.__dict__)) is not None:
            out.write(SHOW(value) + "\n")
    except ANYTHING as error:
        builtins.__dict__.update(ORIGINALS)
        sys.setrecursionlimit(1000)
        sys.settrace(None)
        if not isinstance(error, SystemExit) or error.code:
            out.write(explain(error, code) + "\n")
            exit_status = ERROR_EXIT
    out.flush()
    return exit_status


def without_fence(code: str) -> str:
    """The program without the Markdown fence that encloses the whole of it, if one does."""
    first, *body = code.strip().split("\n")
    whole = first.startswith(FENCE) and bool(body) and body.pop().strip() == FENCE
    return "\n".join(body) if whole else code


def rehearse() -> None:
    """Runs a small program before the real one, so that the pages of memory are there."""
    random.seed(0)  # the same program prints the same each time; a fork seeds it anew
    names: dict = {}
    exec(compile(ast.Module(ast.parse("x = 1 + 1", NAME).body, []), NAME, "exec"), names)
    eval(compile(ast.parse("repr(x)", NAME, "eval"), NAME, "eval"), names)


def explain(error: BaseException, code: str) -> str:
    """A short traceback: the lines of the program, innermost last, and the error."""
    try:
        summary = traceback.format_exception_only(error)[-1].strip()
        summary = summary.replace(LIBRARY, "<library>")
        lines = code.replace("\r\n", "\n").replace("\r", "\n").split("\n")  # as Python does
        if len(code.strip().splitlines()) == 1:
            return summary
        frames = places(error, lines)
        frames = [line for line, last in zip(frames, ["", *frames], strict=False) if line != last]
        return "\n".join([*frames[-FRAMES:], summary])
    except Exception:
        return type(error).__name__


def places(error: BaseException, lines: list[str]) -> list[str]:
    frames = [
        (frame.f_code.co_name, number)
        for frame, number in traceback.walk_tb(error.__traceback__)
        if frame.f_code.co_filename == NAME
    ]
    if isinstance(error, SyntaxError) and error.filename == NAME and error.lineno:
        frames.append(("<module>", error.lineno))
    return [
        f"line {number}{'' if name == '<module>' else f', in {name}'}: "
        + (lines[number - 1].strip()[:LINE_CHARS] if number <= len(lines) else "")
        for name, number in frames
    ]

"""User code by config path: it is loaded, or refused with one clear line."""

from __future__ import annotations

import itertools
import re
import sys

import pytest

from rapo_jax.io.user_code import exit_is_an_error, load, load_function
from tests import user_code

NUMBER = itertools.count()


@pytest.fixture
def module(tmp_path):
    """Writes a module of a new name where imports look; returns its name."""
    sys.path.append(str(tmp_path))
    names = []

    def write(source):
        names.append(f"user_module_{next(NUMBER)}")
        (tmp_path / f"{names[-1]}.py").write_text(source)
        return names[-1]

    yield write
    sys.path.remove(str(tmp_path))
    for name in names:
        sys.modules.pop(name, None)


def test_a_path_loads_what_a_module_holds(module):
    name = module("def double(text):\n    return 2 * text\n")
    assert load(f"{name}:double", key="tools.user_tools")("ab") == "abab"
    assert load("tests.user_code:NOT_CALLABLE", key="k") == user_code.NOT_CALLABLE


NO_PATHS = ("", "my_tools", "my_tools:", ":f", "my tools:f", "my_tools.py:f", "a:b:c", "a/b:c")


@pytest.mark.parametrize("path", NO_PATHS)
def test_a_malformed_path_is_refused_with_the_form(path):
    with pytest.raises(ValueError, match=re.escape(f"task.reward={path!r}: write module:name, su")):
        load(path, key="task.reward")


def test_a_missing_module_is_refused_with_the_place_to_put_it():
    message = "k='no_such_code.sub:f': there is no module no_such_code; put no_such_code.py into"
    with pytest.raises(ValueError, match=message):
        load("no_such_code.sub:f", key="k")


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        (
            "import no_such_package\n",
            "ModuleNotFoundError: No module named 'no_such_package' (user",
        ),
        ("a = 1\nb = a / 0\n", "ZeroDivisionError: division by zero (user_module_"),
        ("def f(:\n", "SyntaxError: "),
        ("raise SystemExit(0)\n", "SystemExit: 0 (user_module_"),
    ],
)
def test_a_module_that_cannot_be_imported_is_refused_with_its_error_and_line(
    module, source, reason
):
    name = module(source)
    with pytest.raises(ValueError) as refused:
        load(f"{name}:f", key="task.name")
    assert str(refused.value).startswith(f"task.name='{name}:f': importing {name} fails with ")
    assert reason in str(refused.value)
    assert "line 2)" in str(refused.value) or source.count("\n") == 1
    assert "\n" not in str(refused.value)


def test_a_name_that_the_module_does_not_hold_is_refused_with_the_nearest_one():
    with pytest.raises(ValueError, match=r"user_code.py holds no 'shuot'; did you mean 'shout'\?"):
        load("tests.user_code:shuot", key="k")


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("NOT_CALLABLE", "and is a int"),
        ("later", "and is a coroutine; write it without async"),
        ("takes_nothing", "and takes () (too many positional arguments)"),
        ("quarter", "and takes (text, gold_answers) (missing a required argument: 'gold_answers')"),
    ],
)
def test_an_object_that_cannot_be_called_as_needed_is_refused(name, reason):
    with pytest.raises(ValueError) as refused:
        load_function(f"tests.user_code:{name}", key="k", takes=("text",))
    message = f"k='tests.user_code:{name}': must be a function of (text), {reason}"
    assert str(refused.value) == message


def test_a_function_of_c_code_is_taken_as_it_is():
    assert load_function("builtins:max", key="k", takes=("text",)) is max


def test_an_exit_of_user_code_is_an_error_with_its_place():
    message = r"user code ended the program with SystemExit: 0 \(user_code.py, line \d+\); raise an"
    with pytest.raises(RuntimeError, match=message), exit_is_an_error():
        user_code.leaves("text", ())

"""The house rules that can be read off the source: who imports whom, and how long a file is."""

from __future__ import annotations

import ast
import functools
import re
import string
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = "rapo_jax"
ORDER = (
    "types", "io", "config.keys", "config.schema", "config", "method", "text",
    "search", "search.index", "search.server", "model",
    "rollout", "scoring", "tools.observation", "tools.sandbox", "tools", "tasks.published", "tasks",
    "suites", "buffer", "environment", "report", "distributed", "sampling", "run", "train", "plan",
    "stages", "notebook", "main",
)  # fmt: skip
"""Packages and modules, each after all that it imports. A module belongs to the longest name that
it lies within."""
APART = {("rollout", other) for other in ("text", "search", "tools", "tasks", "buffer")}
"""Pairs that must not import each other though their order would allow it."""
HOST_PACKAGES = (
    "io", "config", "text", "search", "scoring", "tools", "tasks", "suites", "buffer",
    "environment", "report",
)  # fmt: skip
JITTED = ("sampling/", "run/", "train/", "stages/", "plan/programs.py")
"""Where programs are compiled."""
IMPORTED_LATE = (f"{PACKAGE}.tasks.builder", f"{PACKAGE}.stages.job")
"""Our modules that functions import, because they import a heavy package at their top, as that
package demands."""
DEVICE_PACKAGES = ("jax", "jaxlib", "flax", "optax")
MAX_LINES = 300


def sources(*folders):
    return sorted(path for folder in folders for path in (ROOT / folder).rglob("*.py"))


LAUNCH_SCRIPTS = {path.stem for path in sources("launch")}
"""They import each other by these names."""


def module_of(path):
    parts = path.relative_to(ROOT).with_suffix("").parts
    return parts[:-1] if parts[-1] == "__init__" else parts


@functools.cache
def tree_of(path):
    return ast.parse(path.read_text(encoding="utf-8"))


@functools.cache
def imports(path):
    return list(imported_names(tree_of(path), package_of(path)))


@functools.cache
def late_imports(path):
    """The names that functions of a file import."""
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef)
    functions = (node for node in ast.walk(tree_of(path)) if isinstance(node, kinds))
    return {name for node in functions for name in imported_names(node, package_of(path))}


def package_of(path):
    return list(module_of(path) if path.name == "__init__.py" else module_of(path)[:-1])


def imported_names(tree, package):
    """Every name that a file of `package` imports, in full: `from a import b` gives `a.b`."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (name.name for name in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) + 1 - node.level] if node.level else []
            start = ".".join([*base, *filter(None, [node.module])])
            yield from (f"{start}.{name.name}" for name in node.names)


@functools.cache
def dotted_names(path):
    """What a file mentions as an attribute, such as jax.jit."""
    attributes = (node for node in ast.walk(tree_of(path)) if isinstance(node, ast.Attribute))
    return {ast.unparse(node) for node in attributes}


def uses(path, name):
    """Whether a file mentions `name`, such as jax.jit, imported or as an attribute."""
    return name in dotted_names(path) or name in imports(path)


def home(module):
    """The entry of ORDER that a dotted name belongs to, or None outside rapo_jax."""
    package, _, inner = module.partition(".")
    if package != PACKAGE or not inner:
        return None
    homes = [name for name in ORDER if is_within(inner, name)]
    return max(homes, key=len) if homes else inner.split(".")[0]


def is_within(name, package):
    return name == package or name.startswith(f"{package}.")


def offenders(name, allowed):
    """Files of the package and the configs that use `name` outside the allowed places."""
    found = []
    for path in sources(PACKAGE, "configs"):
        if uses(path, name) or any(is_within(each, name) for each in imports(path)):
            found.append(path.relative_to(ROOT).as_posix())
    return [path for path in found if not path.startswith(allowed)]


def modules():
    """Every module of the package by its dotted name."""
    return {".".join(module_of(path)): path for path in sources(PACKAGE)}


def test_every_module_has_a_place_in_the_import_order():
    homes = {name: home(name) for name in modules() if name != PACKAGE}
    assert {name: found for name, found in homes.items() if found not in ORDER} == {}


def test_a_package_imports_only_packages_before_it():
    wrong = []
    for module, path in modules().items():
        for name in imports(path) if module != PACKAGE else ():
            here, other = home(module), home(name)
            if other in (None, here):
                continue
            if ORDER.index(other) > ORDER.index(here) or (here, other) in APART:
                wrong.append(f"{path.relative_to(ROOT)} imports {name}")
    assert wrong == []


def test_no_modules_import_each_other_in_a_circle():
    known = modules()

    def imported(module):
        for name in imports(known[module]):
            parent = name.rpartition(".")[0]
            found = name if name in known else parent
            if found in known and found != module:
                yield found

    left = {module: set(imported(module)) for module in known}
    while leaves := {module for module, needs in left.items() if not needs & left.keys()}:
        left = {module: needs for module, needs in left.items() if module not in leaves}
    assert left == {}


def test_functions_import_only_third_party_modules():
    wrong = []
    for path in modules().values():
        for name in late_imports(path):
            late = any(is_within(name, module) for module in IMPORTED_LATE)
            ours = is_within(name, PACKAGE) and not late
            if ours or name.split(".")[0] in {"configs", *sys.stdlib_module_names}:
                wrong.append(f"{path.relative_to(ROOT)} imports {name}")
    assert wrong == []


def test_the_package_itself_imports_no_module():
    assert imports(ROOT / PACKAGE / "__init__.py") == []


def test_the_host_never_imports_jax():
    for module, path in modules().items():
        if (home(module) or "").split(".")[0] not in HOST_PACKAGES:
            continue
        strangers = [name for name in imports(path) if name.split(".")[0] in DEVICE_PACKAGES]
        assert strangers == [], path


def test_the_method_knows_no_model_and_no_strings_of_the_host():
    allowed = {"types", "method"}
    for path in sources(f"{PACKAGE}/method"):
        assert {home(name) for name in imports(path)} - {None} <= allowed, path


@pytest.mark.parametrize(
    ("name", "allowed"),
    [
        ("jax.experimental.io_callback", (f"{PACKAGE}/rollout/bridge.py",)),
        ("jax.pure_callback", ()),
        ("torch", ()),
        # a plan compiles the rollout without its host, which no run does
        ("jax.jit", tuple(f"{PACKAGE}/{place}" for place in JITTED)),
        ("ml_collections", ("configs/",)),
    ],
)
def test_what_has_one_place_is_used_nowhere_else(name, allowed):
    assert offenders(name, allowed) == []


@pytest.mark.parametrize(
    ("folders", "strangers"),
    [
        ((PACKAGE, "configs"), {"tests", "launch", "benchmarks", *LAUNCH_SCRIPTS}),
        (("launch",), {"tests", "benchmarks"}),
    ],
)
def test_the_product_never_imports_its_tests_launch_scripts_or_benchmarks(folders, strangers):
    for path in sources(*folders):
        assert not strangers & {name.split(".")[0] for name in imports(path)}, path


def suffixed_names(tree):
    """The names that a file gives to variables, arguments and fields, if they end in capitals."""
    for node in ast.walk(tree):
        if isinstance(node, ast.arg):
            name = node.arg
        elif isinstance(node, ast.Name | ast.Attribute) and isinstance(node.ctx, ast.Store):
            name = node.id if isinstance(node, ast.Name) else node.attr
        else:
            continue
        if not name.isupper() and (found := re.fullmatch(r"\w*[a-zA-Z0-9]_([A-Z0-9]+)", name)):
            yield name, found[1]


def test_a_name_ends_only_in_letters_that_the_legend_explains():
    legend = re.findall(r"^    .*$", ast.get_docstring(tree_of(ROOT / PACKAGE / "types.py")), re.M)
    letters = re.findall(r"\b[A-Z]\b", "\n".join(legend))
    assert "A number is an axis" in ast.get_docstring(tree_of(ROOT / PACKAGE / "types.py"))
    unknown = {
        name
        for path in sources(PACKAGE)
        for name, suffix in suffixed_names(tree_of(path))
        if not set(suffix) <= {*letters, *string.digits}
    }
    assert unknown == set()
    assert {"token_BT", "value_1X"} <= {
        name for path in sources(PACKAGE) for name, _ in suffixed_names(tree_of(path))
    }


@pytest.mark.parametrize("folder", [PACKAGE, "configs", "launch", "benchmarks", "tests"])
def test_no_file_is_longer_than_can_be_read_in_one_go(folder):
    lengths = {
        path.relative_to(ROOT).as_posix(): len(path.read_text(encoding="utf-8").splitlines())
        for path in sources(folder)
    }
    assert {path: lines for path, lines in lengths.items() if lines > MAX_LINES} == {}


def test_the_walker_sees_imports_in_functions_and_relative_ones():
    source = "def f():\n    import jax.numpy as jnp\nfrom ..tools import search\nfrom . import x"
    found = set(imported_names(ast.parse(source), [PACKAGE, "host", "memory"]))
    assert found == {"jax.numpy", f"{PACKAGE}.host.tools.search", f"{PACKAGE}.host.memory.x"}

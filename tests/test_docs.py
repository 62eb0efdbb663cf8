"""The documentation names what exists: files, keys, modules, functions, tests, headings."""

from __future__ import annotations

import ast
import importlib.util
import re
from pathlib import Path

import pytest
import yaml
from ml_collections import ConfigDict

from configs import default
from rapo_jax.config.methods import METHODS

ROOT = Path(__file__).resolve().parents[1]
METHOD = ROOT / "rapo_jax" / "method"
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
WIDTH = 120
HISTORY = {"CHANGELOG.md"}
"""Pages that name what no longer exists."""
NO_KEYS = re.compile(r".*\.(json|safetensors)|tools\.(observation|sandbox)")
"""Files and modules whose names begin like a group of the config."""

each_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
each_present_page = pytest.mark.parametrize(
    "page", [page for page in PAGES if page.name not in HISTORY], ids=lambda page: page.name
)


def text_of(page):
    return page.read_text(encoding="utf-8")


def is_key(name, config=None):
    """Whether default.get_config() has a key or group of this dotted name."""
    value = config or default.get_config()
    for part in name.split("."):
        if not isinstance(value, ConfigDict) or part not in value:
            return False
        value = value[part]
    return True


def without_code(text):
    return re.sub(r"```.*?```", "", text, flags=re.DOTALL)


def anchor(heading):
    """A heading's anchor as GitHub makes it."""
    kept = re.sub(r"[^\w\- ]", "", heading.strip().lower())
    return kept.replace(" ", "-")


def anchors_of(page):
    headings = re.findall(r"^#+ (.*)$", without_code(text_of(page)), re.MULTILINE)
    return {anchor(heading) for heading in headings}


def names_in(tree):
    return {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}


def functions_of(path):
    nodes = ast.walk(ast.parse(path.read_text(encoding="utf-8")))
    return {node.name for node in nodes if isinstance(node, ast.FunctionDef)}


def test_the_readme_can_be_read_in_one_go():
    assert len(text_of(ROOT / "README.md").splitlines()) <= 150


@each_page
def test_prose_is_not_wider_than_a_screen(page):
    lines = without_code(text_of(page)).splitlines()
    wide = [line for line in lines if len(line) > WIDTH and not line.startswith(("|", "!["))]
    assert wide == []


@each_page
def test_links_lead_to_pages_and_headings_that_exist(page):
    broken = []
    for link in re.findall(r"\]\(([^)\s]+)\)", without_code(text_of(page))):
        if link.startswith(("http://", "https://")):
            continue
        name, _, heading = link.partition("#")
        target = (page.parent / name).resolve() if name else page
        if not target.exists() or (heading and heading not in anchors_of(target)):
            broken.append(link)
    assert broken == []


def test_every_page_of_a_study_is_named_beside_its_command():
    named = re.findall(r"\]\((studies/[^)#]+)\)", text_of(ROOT / "docs" / "usage.md"))
    pages = (ROOT / "docs" / "studies").glob("*/*.md")
    assert {str(page.relative_to(ROOT / "docs")) for page in pages} <= set(named)


@each_present_page
def test_every_path_exists(page):
    folders = r"(?:rapo_jax|configs|launch|docs|tests|benchmarks|\.ci)"
    named = re.findall(rf"(?<![\w/.-])({folders}/[\w./-]*\w/?)", text_of(page))
    assert [path for path in named if not (ROOT / path).exists()] == []


@each_present_page
def test_every_key_on_a_command_line_exists(page):
    keys = re.findall(r"--config\.([a-z_0-9]+(?:\.[a-z_0-9]+)*)", text_of(page))
    assert [key for key in keys if not is_key(key)] == []


@each_present_page
def test_every_key_in_prose_exists(page):
    """Names in backticks that begin with a group of the config, such as `rl.std_floor`."""
    config = default.get_config()
    groups = [name for name in config if isinstance(config[name], ConfigDict)]
    pattern = rf"`((?:{'|'.join(groups)})(?:\.[a-z_0-9]+)+)(?=[`=])"
    keys = {key for key in re.findall(pattern, text_of(page)) if not NO_KEYS.fullmatch(key)}
    assert {key for key in keys if not is_key(key, config)} == set()


@each_present_page
def test_every_module_that_is_run_or_imported_exists(page):
    text = text_of(page)
    named = re.findall(r"python -m (rapo_jax[\w.]*\w)", text)
    named += re.findall(r"from (rapo_jax[\w.]*) import", text)
    assert [name for name in named if importlib.util.find_spec(name) is None] == []


def test_every_metric_exists():
    """Its name is written in the package, or put together from its group: f"time/{name}"."""
    table = text_of(ROOT / "docs" / "usage.md").partition("\n### Metrics")[2].partition("\n## ")[0]
    named = re.findall(r"`([a-z]+)/([a-z_]+)`", table)
    package = "".join(text_of(path) for path in (ROOT / "rapo_jax").rglob("*.py"))
    unknown = [
        f"{group}/{name}"
        for group, name in named
        if f'"{group}/{name}"' not in package and f'f"{group}/{{' not in package
    ]
    assert len(named) > 30
    assert unknown == []


def test_the_code_cites_pages_that_exist():
    cited = {
        (path.name, page)
        for folder in ("rapo_jax", "configs", "launch", "benchmarks")
        for path in (ROOT / folder).rglob("*")
        if path.suffix in (".py", ".sh")
        for page in re.findall(r"\bdocs/\w+\.md\b", text_of(path))
    }
    assert len(cited) > 5
    assert {each for each in cited if not (ROOT / each[1]).exists()} == set()


def equations():
    """(file, function, test) of each row of the README's table of equations."""
    row = r"^\| [\d, ]+ \| .* \| `(\w+\.py)` `(\w+)` \| `(\w+)` \|$"
    return re.findall(row, text_of(ROOT / "README.md"), re.MULTILINE)


def test_the_equations_name_functions_and_tests_that_exist():
    tests = set().union(*map(functions_of, (ROOT / "tests" / "method").glob("test_*.py")))
    assert len(equations()) >= 8
    for file, function, test in equations():
        assert function in functions_of(METHOD / file)
        assert test in tests


def test_training_reaches_every_function_of_the_equations():
    """By name: from what the files of train/ mention, through what the method's functions do."""
    calls = {
        node.name: names_in(node)
        for path in METHOD.glob("*.py")
        for node in ast.parse(text_of(path)).body
        if isinstance(node, ast.FunctionDef)
    }
    training = (ROOT / "rapo_jax" / "train").glob("*.py")
    reached: set[str] = set()
    new = set().union(*(names_in(ast.parse(text_of(path))) for path in training)) & calls.keys()
    while new:
        reached |= new
        new = set().union(*(calls[name] for name in new)) & calls.keys() - reached
    assert {function for _, function, _ in equations()} <= reached


def test_the_architecture_lists_the_packages_in_their_import_order():
    from tests.test_layout import ORDER

    page = text_of(ROOT / "docs" / "architecture.md")
    section = page.partition("\n## Packages and import order\n")[2].partition("\n## ")[0]
    assert tuple(re.findall(r"^\| `([\w.]+)` \|", section, re.MULTILINE)) == ORDER


def test_the_architecture_names_tables_that_exist():
    page = text_of(ROOT / "docs" / "architecture.md").partition("\n## Adding")[2]
    package = "".join(text_of(path) for path in (ROOT / "rapo_jax").rglob("*.py"))
    tables = set(re.findall(r"`([A-Z][A-Z_]{4,})`", page.partition("\n## ")[0]))
    assert len(tables) > 5
    assert {name for name in tables if not re.search(rf"^{name}\b", package, re.MULTILINE)} == set()


def test_the_table_of_methods_has_them_all_and_says_which_need_the_buffer():
    table = text_of(ROOT / "docs" / "methods.md").partition("\nNotation: ")[0]
    cells = [line.split(" | ") for line in table.splitlines()]
    rows = {row[0].strip("| `"): row[-1].strip("| ") for row in cells if row[0].startswith("| `")}
    assert rows == {name: "yes" if each.buffer else "no" for name, each in METHODS.items()}


def test_the_citation_has_what_its_format_requires():
    citation = yaml.safe_load(text_of(ROOT / "CITATION.cff"))
    assert citation["cff-version"] == "1.2.0"
    assert citation["type"] == "software"
    assert citation["license"] == "Apache-2.0"
    assert all(citation[key] for key in ("message", "title", "authors"))
    (paper,) = citation["references"]
    assert all(paper[key] for key in ("type", "title", "authors"))
    assert "2603.03078" in paper["url"]

from __future__ import annotations

import base64
import hashlib
import html.parser
import json
import re

import pytest

from rapo_jax.report.page import embed, write_report


class Elements(html.parser.HTMLParser):
    """All elements of a page with their attributes, the text of scripts, and whether all closed."""

    VOID = ("meta", "input", "br", "img", "link")

    def __init__(self, page):
        super().__init__()
        self.found, self.scripts, self.open = [], [], []
        self.feed(page)

    def handle_starttag(self, tag, attributes):
        self.found.append((tag, dict(attributes)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.found.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] == "script":
            self.scripts.append(data)


def page_of(workdirs, tmp_path):
    return write_report(workdirs, tmp_path / "out" / "report.html").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def runs(write_run, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    return [
        write_run(folder / f"{method}{seed}", method=method, seed=seed, after=after + 0.01 * seed)
        for method, after in (("grpo", 0.6), ("rapo", 0.7))
        for seed in (0, 1)
    ]


@pytest.fixture(scope="module")
def page(runs, tmp_path_factory):
    """The report of four runs, written once for this file."""
    return page_of(runs, tmp_path_factory.mktemp("page"))


SECTIONS = ("headline", "heldout", "curves", "time", "viewer", "runs")


def test_the_page_of_several_runs_holds_every_section(page):
    assert all(f'id="{section}"' in page for section in SECTIONS)
    assert "Comparison of 2 variants" in page and "What is missing" not in page
    assert Elements(page).open == []


def test_the_page_of_one_run_holds_every_section_and_counts_a_folder_once(runs, tmp_path):
    page = page_of([runs[-1], runs[-1]], tmp_path)
    assert all(f'id="{section}"' in page for section in SECTIONS)
    assert "Run report: rapo" in page and "1 run." in page and "What is missing" not in page
    assert Elements(page).open == []


def test_the_page_loads_nothing_from_outside(page):
    for tag, attributes in Elements(page).found:
        assert tag not in ("link", "img", "iframe", "object", "embed")
        assert not {"src", "srcset", "data", "action"} & attributes.keys()
        for name in ("href", "xlink:href"):
            assert attributes.get(name, "#").startswith("#")
        assert not [name for name in attributes if name.startswith("on")]


def test_hostile_model_text_makes_no_element_and_survives_as_text(page):
    elements = Elements(page)
    assert len(elements.scripts) == 2  # the data and the viewer, nothing of the model's
    data = json.loads(elements.scripts[0])
    texts = [s["text"] for run in data for t in run["trajectories"] for s in t["segments"]]
    assert any("</script><script>alert(1)</script><img src=x" in text for text in texts)
    assert "</" not in elements.scripts[0]


def test_a_hostile_setting_or_folder_name_is_escaped(make_run, tmp_path):
    evil = '"><script>alert(1)<script>'
    workdirs = [make_run(f"<b>{m}", rl={"name": m}) for m in ("plain", evil)]
    page = page_of(workdirs, tmp_path)
    elements = Elements(page)
    assert len(elements.scripts) == 2 and "<b>plain" not in page
    assert evil not in page


def test_only_the_viewers_script_may_run(page):
    script = Elements(page).scripts[1]
    allowed = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert f"script-src 'sha256-{allowed}'" in page
    assert "default-src 'none'" in page
    assert "innerHTML" not in script and "insertAdjacentHTML" not in script


def test_whatever_is_missing_is_named_on_the_page(make_run, tmp_path):
    empty = tmp_path / "empty"
    empty.mkdir()
    cut = make_run("cut")
    (cut / "result.json").write_text("{")
    (cut / "trajectories.jsonl").unlink()
    page = page_of([empty, cut, tmp_path / "nowhere"], tmp_path)
    assert "Run report: rapo" in page  # folders without a run are no variants
    text = re.sub(r"\s+", " ", page)
    for words in (
        "empty: metrics.jsonl is missing",
        "cut: result.json cannot be read",
        "nowhere: there is no such folder",
        "no trajectories.jsonl",
    ):
        assert words in text


def test_runs_of_one_seed_and_variant_are_named_on_the_page(make_run, tmp_path):
    page = page_of([make_run("a"), make_run("b")], tmp_path)
    assert "rapo: 2 runs of seed 0 count as one, with their mean" in page


def test_held_out_samples_are_shown_beside_the_trajectories(make_run, tmp_path):
    run = make_run("watched")
    samples = [{"step": step, "stage": "heldout", "question_id": "h1", "question": "Who?",
                "answers": ["E9"], "row": 0, "status": "ANSWERED", "reward": 1.0,
                "segments": [{"source": "POLICY", "step": 0, "text": "a held-out response"}]}
               for step in (0, 4)]  # fmt: skip
    (run / "samples.jsonl").write_text("".join(f"{json.dumps(each)}\n" for each in samples))
    page = page_of([run], tmp_path)
    first, second = json.loads(Elements(page).scripts[0])
    assert (first["label"], len(first["trajectories"])) == ("rapo, seed 0", 8)
    assert second == {"label": "rapo, seed 0, held-out samples", "trajectories": samples}
    assert "2 of 2 held-out samples" in page


def test_an_empty_list_of_runs_still_gives_a_page(tmp_path):
    page = page_of([], tmp_path)
    assert "Nothing to report yet" in page and "No RL step has been logged" in page


def test_embedded_json_cannot_end_its_element_and_knows_no_nan():
    value = {"</script>": ["<!--", float("nan"), {"&": float("inf")}, "\u2028"]}
    text = embed(value)
    assert not set(text) & set("<>&\u2028")
    assert json.loads(text) == {"</script>": ["<!--", None, {"&": None}, "\u2028"]}

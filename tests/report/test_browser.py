"""The report in a real browser: menus, keyboard, dark mode, a narrow screen, no console errors."""

from __future__ import annotations

import json

import pytest

from rapo_jax.report.page import write_report
from tests.report.browser import Browser, executable
from tests.report.conftest import HOSTILE, segment, trajectory, write_lines

PROGRAM = executable()
pytestmark = pytest.mark.skipif(
    PROGRAM is None,
    reason="no Chromium: apt-get install chromium, or name one in RAPO_JAX_CHROMIUM",
)
CONTRAST = """(() => {
  const numbers = (colour) => colour.match(/[\\d.]+/g).map(Number);
  const light = (colour) => {
    const [r, g, b] = numbers(colour).slice(0, 3).map((x) => x / 255)
      .map((x) => (x <= 0.04045 ? x / 12.92 : ((x + 0.055) / 1.055) ** 2.4));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const behind = (element) => {
    for (let each = element; each; each = each.parentElement) {
      const colour = getComputedStyle(each).backgroundColor;
      if ((numbers(colour)[3] ?? 1) === 1) return colour;
    }
    return "rgb(255, 255, 255)";
  };
  const worst = {};
  for (const element of document.querySelectorAll("body *:not(script):not(style)")) {
    const own = [...element.childNodes].some((n) => n.nodeType === 3 && n.data.trim());
    if (!own || !element.checkVisibility() || element.closest("svg")) continue;
    const pair = [light(getComputedStyle(element).color), light(behind(element))].sort();
    const name = element.tagName + "." + element.className;
    worst[name] = Math.min(worst[name] ?? 99, (pair[1] + 0.05) / (pair[0] + 0.05));
  }
  return worst;
})()"""
"""WCAG contrast of text by kind of element; the smallest of each."""


def with_step_after(row):
    """A hybrid rollout with a policy step after its retrieved trace; others with less entropy."""
    if not row["hybrid"]:
        row["segments"][1]["entropy"] = 0.25
    else:
        row["segments"][-1]["z"] = 0.125
        row["segments"].append(segment("POLICY", 2, "then", entropy=0.25, token_entropy=[0.25]))
    return row


@pytest.fixture(scope="module")
def page(write_run, tmp_path_factory):
    """The report of two variants, one with two questions a step and held-out samples."""
    folder = tmp_path_factory.mktemp("browser")
    runs = [
        write_run(folder / f"{method}{seed}", method=method, seed=seed)
        for method, seed in (("rapo", 0), ("rapo", 1), ("grpo", 0), ("grpo", 1))
    ]
    rows = [
        with_step_after(trajectory(step, question, row, retrieved=row > 0))
        for step in (2, 4)
        for question in ("q1", "q2")
        for row in range(2)
    ]
    write_lines(runs[0] / "trajectories.jsonl", rows)
    sample = {"stage": "heldout", "question_id": "h1", "question": "Who?", "answers": ["E9"],
              "row": 0, "status": "ANSWERED", "reward": 1.0,
              "segments": [{"source": "POLICY", "step": 0, "text": "held-out text"}]}  # fmt: skip
    write_lines(runs[0] / "samples.jsonl", [{"step": step} | sample for step in (0, 4)])
    return write_report(runs, folder / "report.html")


@pytest.fixture(scope="module")
def chromium(tmp_path_factory):
    browser = Browser(PROGRAM, tmp_path_factory.mktemp("chromium") / "profile")
    yield browser
    browser.close()


@pytest.fixture
def browser(chromium, page):
    """The report, freshly loaded; nothing may be reported on its console."""
    chromium.errors.clear()
    chromium.open(page)
    yield chromium
    assert chromium.errors == []


def choose(browser, menu, value):
    """Chooses an option as a click on it does."""
    browser.run(
        f"(() => {{ const menu = document.getElementById('choose-{menu}');"
        f" menu.value = {json.dumps(value)};"
        " menu.dispatchEvent(new Event('change', {bubbles: true})); })()"
    )


def options(browser, menu):
    texts = f"[...document.getElementById('choose-{menu}').options].map((o) => o.textContent)"
    return browser.run(texts)


def chosen(browser):
    """The values of the menus of run, step, question and row."""
    return browser.run(
        "[...document.querySelectorAll('#choice select')].slice(0, 4).map((m) => m.value)"
    )


def shown(browser):
    return browser.run("document.getElementById('trajectory').innerText")


def test_menus_filter_each_other_and_show_the_chosen_trajectory(browser):
    assert options(browser, "run")[:1] == ["rapo, seed 0"]
    assert "rapo, seed 0, held-out samples" in options(browser, "run")
    assert options(browser, "step") == ["rl 2", "rl 4"]
    assert [text[:3] for text in options(browser, "question")] == ["q1:", "q2:"]
    choose(browser, "step", "rl 4")
    choose(browser, "question", "q2")
    assert len(options(browser, "row")) == 2
    rows = options(browser, "row")
    hybrid = next(i for i, text in enumerate(rows) if "hybrid, 1 retrieved" in text)
    choose(browser, "row", str(hybrid))
    assert chosen(browser) == ["0", "rl 4", "q2", str(hybrid)]
    assert "<retrieve>look</retrieve>" in shown(browser)
    choose(browser, "row", str(1 - hybrid))
    choose(browser, "beside", "")
    assert "<retrieve>" not in shown(browser) and "E1town" in shown(browser)
    held_out = options(browser, "run").index("rapo, seed 0, held-out samples")
    choose(browser, "run", str(held_out))
    assert options(browser, "step") == ["heldout 0", "heldout 4"]
    assert options(browser, "row") == ["0: greedy, reward 1.00"]
    assert "held-out text" in shown(browser)


def columns(browser):
    """The text of each rollout that is shown."""
    return browser.run(
        "[...document.querySelectorAll('#trajectory .rollout')].map((x) => x.innerText)"
    )


def test_a_hybrid_rollout_is_shown_beside_an_on_policy_one_of_its_question(browser):
    rows = options(browser, "row")
    hybrid = next(i for i, text in enumerate(rows) if "hybrid, 1 retrieved" in text)
    choose(browser, "row", str(hybrid))
    ours, other = columns(browser)
    assert "1: hybrid, 1 retrieved" in ours and "<retrieve>look</retrieve>" in ours
    assert "0: on-policy" in other and "<retrieve>" not in other
    assert options(browser, "beside") == ["nothing", rows[1 - hybrid]]
    choose(browser, "row", str(1 - hybrid))
    assert ["hybrid, 1 retrieved" in text for text in columns(browser)] == [False, True]
    choose(browser, "beside", "")
    assert len(columns(browser)) == 1


def test_a_retrieved_step_shows_the_entropies_around_it_and_its_reward(browser):
    hybrid = next(i for i, x in enumerate(options(browser, "row")) if "hybrid" in x)
    choose(browser, "row", str(hybrid))
    text = columns(browser)[0]
    # of the made trajectory: a policy step of 0.5 nats before, one of 0.25 after, Z of 0.125
    assert "entropy before 0.500" in text and "after 0.250 nats" in text and "Z +0.125" in text


def test_the_bars_of_both_rollouts_have_one_scale(browser):
    """Steps of 0.5 and 0.25 nats beside one of 0.25, which alone is the largest."""
    hybrid = next(i for i, x in enumerate(options(browser, "row")) if "hybrid" in x)
    on_policy = next(i for i, x in enumerate(options(browser, "row")) if "hybrid" not in x)
    choose(browser, "row", str(hybrid))
    bars = "[...document.querySelectorAll('.meter div')].map((x) => x.style.width)"
    assert browser.run(bars) == ["100%", "50%", "50%"]
    choose(browser, "row", str(on_policy))
    choose(browser, "beside", "")
    assert browser.run(bars) == ["100%"]


@pytest.mark.parametrize(("width", "beside"), [(1200, True), (390, False)])
def test_the_rollouts_are_side_by_side_where_the_screen_is_wide_enough(
    browser, page, width, beside
):
    browser.open(page, width=width)
    tops = browser.run(
        "[...document.querySelectorAll('#trajectory .rollout')]"
        ".map((x) => x.getBoundingClientRect().top)"
    )
    assert (tops[0] == tops[1]) is beside


def test_all_of_the_viewer_can_be_used_with_the_keyboard(browser):
    def focused():
        return browser.run("document.activeElement.id")

    browser.run("document.getElementById('choose-run').focus()")
    browser.press("Tab")
    assert focused() == "choose-step"
    browser.press("ArrowDown")
    assert chosen(browser)[1] == "rl 4"
    browser.press("Tab", "ArrowDown")
    assert focused() == "choose-question" and chosen(browser)[2] == "q2"
    browser.press("Tab", "Tab")
    assert focused() == "choose-beside"
    browser.press("Tab")
    assert focused() == "previous"
    before = chosen(browser)
    browser.press("Enter")
    assert chosen(browser) != before
    browser.press("Tab")
    assert focused() == "next"
    browser.press(" ")
    assert chosen(browser) == before
    browser.run("document.querySelector('#runs summary').focus()")
    browser.press("Enter")
    assert browser.run("document.querySelector('#runs details').open")


def test_next_and_previous_go_through_every_trajectory_of_a_run_once(browser):
    seen = []
    for _ in range(8):
        seen.append(tuple(chosen(browser)))
        browser.run("document.getElementById('next').click()")
    assert len(set(seen)) == 8 and tuple(chosen(browser)) == seen[0]


def test_hostile_text_is_shown_as_text_and_runs_nothing(browser):
    assert HOSTILE.split("\u2028")[0] in shown(browser)
    assert browser.run("document.images.length") == 0
    assert browser.run("document.scripts.length") == 2  # the data and the viewer


@pytest.mark.parametrize("dark", [False, True])
def test_text_can_be_read_in_the_light_and_in_the_dark_scheme(browser, page, dark):
    browser.open(page, dark=dark)
    paper = browser.run("getComputedStyle(document.body).backgroundColor")
    assert paper == ("rgb(20, 23, 28)" if dark else "rgb(255, 255, 255)")
    contrasts = browser.run(CONTRAST)
    assert len(contrasts) > 20
    assert {name: x for name, x in contrasts.items() if x < 4.5} == {}


@pytest.mark.parametrize("dark", [False, True])
def test_a_screen_of_390_pixels_needs_no_scrolling_sideways(browser, page, dark):
    browser.open(page, width=390, dark=dark)
    assert browser.run("innerWidth") == 390
    for value in ("0", "1"):
        choose(browser, "run", value)
        assert browser.run("document.documentElement.scrollWidth") <= 390
    edge = "document.getElementById('choose-question').getBoundingClientRect().right"
    assert browser.run(edge) < 390

"""The picture of the study `map`."""

from __future__ import annotations

import re

from rapo_jax.report.study_maps import Place, draw_map
from rapo_jax.report.study_pages import table
from rapo_jax.report.study_table import PLACES, STUDIES


def test_the_map_has_a_panel_for_each_start_and_a_line_for_each_method(tmp_path):
    places = [
        Place("GRPO", "", ""), Place("SFT", "teacher errs 0%", ""),
        Place("SFT", "teacher errs 70%", ""), Place("GRPO", "", "worse start"),
    ]  # fmt: skip
    assert [place.label for place in places][1::2] == ["SFT, teacher errs 0%", "GRPO, worse start"]
    values = {place.label: {"accuracy": {0: 0.1 * n, 1: 0.2}} for n, place in enumerate(places)}
    draw_map({}, values, ("accuracy",), tmp_path / "map.svg", places=places)
    texts = re.findall(r"<text[^>]*>([^<]*)</text>", (tmp_path / "map.svg").read_text())
    assert [texts.count(each) for each in ("start of the config", "worse start")] == [1, 1]
    assert [texts.count(each) for each in ("GRPO", "SFT", "errs 0%", "errs 70%")] == [1, 1, 2, 2]
    draw_map({}, dict.fromkeys(values, {}), ("accuracy",), tmp_path / "none.svg", places=places)
    assert not (tmp_path / "none.svg").exists()


def test_each_place_of_the_map_is_compared_with_grpo_from_its_own_start():
    of_start = {"": 0.5, "better start": 0.6, "worse start": 0.4}
    values = {place.label: {"accuracy": {0: of_start[place.start]}} for place in PLACES}
    rows = table(STUDIES["map"], values).splitlines()[2:]
    assert len(rows) == 48
    differences = [row.split("|")[5].strip() for row in rows]
    assert differences.count("") == 3 and differences.count("+0.0") == 45

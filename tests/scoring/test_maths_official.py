"""Equality of maths answers by the string rules of the MATH benchmark."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rapo_jax.scoring.maths_official import official_math_equal


@pytest.mark.parametrize(
    ("prediction", "gold"),
    [
        ("\\frac12", "\\frac{1}{2}"),
        ("\\tfrac1{2}", "\\dfrac{1}{2}"),
        ("1/2", "\\frac{1}{2}"),
        ("0.5", "1/2"),
        (".5", "0.5"),
        ("\\sqrt3", "\\sqrt{3}"),
        ("x = 5", "5"),
        ("10\\%", "10"),
        ("90^\\circ", "90"),
        ("\\left( 1, 2 \\right)", "(1,2)"),
        ("12\\text{ cm}", "12"),
        ("\\$5", "5"),
        ("ABC", "abc"),
    ],
)
def test_the_official_string_rules_know_other_spellings(prediction, gold):
    assert official_math_equal(prediction, gold)


@pytest.mark.parametrize(
    ("prediction", "gold"),
    [("2/4", "1/2"), ("1.50", "1.5"), ("a=b=c", "c"), ("abc=5", "5"), ("10%", "10")],
)
def test_the_official_string_rules_know_no_algebra_and_no_bare_percentage(prediction, gold):
    assert not official_math_equal(prediction, gold)


@given(st.text(max_size=30), st.text(max_size=30))
def test_the_official_string_rules_take_any_text(prediction, gold):
    assert official_math_equal(prediction, prediction)
    assert official_math_equal(prediction, gold) == official_math_equal(gold, prediction)

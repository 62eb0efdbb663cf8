r"""Maths equivalence: what is equal, hard deadlines in any thread, and processes that misbehave."""

from __future__ import annotations

import os
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from rapo_jax.scoring.maths import (
    GRACE_S,
    MAX_CHARS,
    MathVerifier,
    math_counts,
    math_equal,
)
from rapo_jax.tasks import is_correct, outcome_reward

ENDLESS = ("9^{9^{9^9}}", "9^{9^{9^8}}")
"""Whole numbers too large for any memory."""


@pytest.mark.parametrize(
    ("prediction", "gold"),
    [
        ("1/2", "0.5"),
        ("\\frac12", "0.5"),
        ("\\dfrac{3}{6}", "\\frac{1}{2}"),
        ("2\\sqrt{2}", "\\sqrt8"),
        ("1,000", "1000"),
        ("x = 5", "5"),
        ("(1, 2)", "(1,2)"),
        ("\\{2, 1\\}", "\\{1, 2\\}"),
        ("12\\text{ cm}", "12"),
        ("\\text{Paris}", "paris"),
        ("Evelyn", "evelyn"),
        ("C", "c"),
        ("1e3", "1000"),
        ("1.5e-7", "0.00000015"),
        ("12.", "12"),
        ("$0.\\overline{3}$", "0.\\overline{3}"),  # not parsed
        ("(1., 2)", "(1,2)"),
        ("1 1/2", "\\frac{3}{2}"),
        ("-1 1/2", "-1.5"),
        ("1½", "1.5"),
        ("5°", "5"),
        ("90^\\circ", "90°"),
        ("pi/2", "\\frac{\\pi}{2}"),
        ("2*pi", "2π"),
        ("3*sqrt(2)", "3\\sqrt{2}"),
        ("2**10", "1024"),
        ("x²", "x^2"),
        ("\u22125", "-5"),
        ("1.5×10³", "1500"),
        ("1\u2009000\u202f000", "1000000"),
        ("12 345", "12345"),
        ("12\\,345", "12{,}345"),
        ("10,\\!000", "10000"),
        ("0.333333", "1/3"),
        ("10\\%", "10"),
        ("101_2", "101_{2}"),
        ("101_2", "101"),
        ("\\frac{2}{2^{61}}", "\\frac{1}{2^{60}}"),
        ("\\{\\frac{1}{2}, 0.5, 3\\}", "\\{0.5, 3\\}"),
    ],
)
def test_answers_that_mean_the_same_are_equal(prediction, gold):
    assert math_equal(prediction, gold)


@pytest.mark.parametrize(
    ("prediction", "gold"),
    [
        ("1/2", "1/3"),
        ("15", "1.5"),
        ("[1, 2]", "(1, 2)"),
        ("pairs", "Paris"),  # the same product of letters
        ("", "5"),
        ("5", ""),
        ("}{", "5"),
        ("$\\", "5"),
        ("5" * 5000, "5"),
        ("\ud800", "5"),
        ("\\foo 3 7", "7"),
        ("\\foo 7", "7"),
        ("\\foo answer: $7$", "7"),
        ("\\sin 7 \\foo", "7"),
        ("{7 8", "8"),
        ("7}", "7"),
        ("3 7", "7"),
        ("3 7", "10"),
        ("1/2^60", "1/2^61"),
        ("2023/2024!", "2022/2024!"),
        ("\\sqrt{2}/2^{60}", "\\sqrt{2}/2^{61}"),
        ("x/2^{60}", "x/2^{61}"),
        ("(1/2^{60}, 1)", "(1/2^{61}, 1)"),
        ("\\{1/2^{60}, 1\\}", "\\{1/2^{61}, 1\\}"),
        ("0.0000001", "0.0000002"),
        ("1e-7", "2e-7"),
        ("101_2", "101_3"),
        ("1e3", "1e4"),
        ("1 1/2", "1/2"),
        ("1 000", "1"),
    ],
)
def test_answers_that_mean_something_else_are_different(prediction, gold):
    assert not math_equal(prediction, gold)


def test_a_comparison_without_end_is_a_time_out_and_the_next_one_is_answered():
    verifier = MathVerifier(workers=1, deadline_s=3.0, memory_mb=1024)
    started = time.monotonic()
    assert verifier.compare(*ENDLESS) == "timeout"
    assert time.monotonic() - started < 60  # and not for ever
    assert verifier.compare("1/2", "0.5") == "equal"
    assert verifier.counts == {"equal": 1, "different": 0, "timeout": 1, "crashed": 0}
    verifier.close()


def test_threads_share_the_processes_and_each_gets_its_verdicts():
    pairs = [(f"\\frac{{{i}}}{{4}}", f"{j / 4}") for i in range(8) for j in (i, i + 1)]
    verifier = MathVerifier(workers=2, deadline_s=20.0, memory_mb=1024)
    with ThreadPoolExecutor(6) as threads:
        found = list(threads.map(lambda pair: verifier.compare(*pair), pairs))
    assert found == ["equal", "different"] * 8
    verifier.close()


def test_a_process_that_waits_longer_than_the_deadline_still_answers():
    verifier = MathVerifier(workers=1, deadline_s=3.0, memory_mb=1024)
    assert verifier.compare("1/2", "0.5") == "equal"
    time.sleep(3.2)  # the deadline is that of a comparison
    assert verifier.compare("1/4", "0.25") == "equal"
    verifier.close()


def scripted(tmp_path, body, *, deadline_s=5.0):
    """A verifier whose processes run `body` after their greeting."""
    path = tmp_path / "worker.py"
    path.write_text(f"import json, os, sys, time\nprint('\"ready\"', flush=True)\n{body}\n")
    command = (sys.executable, "-S", str(path))
    return MathVerifier(workers=1, deadline_s=deadline_s, memory_mb=64, command=command)


def test_a_process_that_dies_is_a_crash_and_is_started_again(tmp_path):
    flag = tmp_path / "died"
    verifier = scripted(
        tmp_path,
        f"for line in sys.stdin:\n"
        f"    if not os.path.exists({str(flag)!r}):\n"
        f"        open({str(flag)!r}, 'w').close(); os._exit(3)\n"
        f"    print('true', flush=True)",
    )
    assert verifier.compare("1", "2") == "crashed"
    assert verifier.compare("1", "3") == "equal"
    verifier.close()


def test_a_comparison_that_failed_is_tried_once_more_and_then_known(tmp_path):
    asked = tmp_path / "asked"
    verifier = scripted(
        tmp_path,
        f"for line in sys.stdin:\n"
        f"    open({str(asked)!r}, 'a').write(line)\n"
        f"    first = len(open({str(asked)!r}).read().splitlines()) == 1\n"
        f"    if first or 'bad' in line: os._exit(3)\n"
        f"    print('true', flush=True)",
    )
    assert [verifier.compare("1", "2") for _ in range(3)] == ["crashed", "equal", "equal"]
    assert [verifier.compare("3", "4bad") for _ in range(3)] == ["crashed"] * 3
    assert len(asked.read_text().splitlines()) == 4
    verifier.close()


def test_a_process_that_hangs_beyond_its_alarm_is_killed(tmp_path):
    verifier = scripted(tmp_path, "time.sleep(1000)", deadline_s=0.2 - GRACE_S)
    assert verifier.compare("1", "2") == "timeout"


def test_a_process_that_answers_nonsense_is_a_crash(tmp_path):
    verifier = scripted(tmp_path, "sys.stdin.readline(); print('perhaps', flush=True)")
    assert verifier.compare("1", "2") == "crashed"


def test_a_process_that_cannot_start_is_an_error_with_the_command_to_try(tmp_path):
    missing = (sys.executable, str(tmp_path / "none.py"))
    verifier = MathVerifier(workers=1, deadline_s=1.0, memory_mb=64, command=missing)
    with pytest.raises(RuntimeError, match="task.metric='math': .*status 2.*try: python"):
        verifier.compare("1", "2")


def test_an_answer_longer_than_any_right_one_is_not_sent_to_the_process(tmp_path):
    verifier = scripted(tmp_path, "for line in sys.stdin: print('true', flush=True)")
    long = "1" * (MAX_CHARS + 1)
    assert [verifier.compare(long, "1"), verifier.compare("1", long)] == ["different"] * 2
    assert verifier.compare(long[1:], "1") == "equal"
    verifier.close()


def test_a_repeated_comparison_is_not_sent_to_the_process(tmp_path):
    asked = tmp_path / "asked"
    verifier = scripted(
        tmp_path,
        f"for line in sys.stdin:\n"
        f"    open({str(asked)!r}, 'a').write(line); print('true', flush=True)",
    )
    assert [verifier.compare(" 1 ", "2"), verifier.compare("1", "2 ")] == ["equal"] * 2
    assert len(asked.read_text().splitlines()) == 1
    assert verifier.counts["equal"] == 2
    verifier.close()


def test_closing_ends_the_processes():
    verifier = MathVerifier(workers=1, deadline_s=20.0, memory_mb=1024)
    verifier.compare("1/2", "0.5")
    process = verifier._workers[0]._process
    verifier.close()
    with pytest.raises(ProcessLookupError):
        os.kill(process.pid, 0)


def response(answer):
    return f"<think>t</think><answer>\\boxed{{{answer}}}</answer>"


def test_the_maths_metric_rewards_an_equivalent_answer_and_f1_does_not():
    text = response("\\frac{1}{2}")
    assert outcome_reward(text, ["7", "0.5"], metric="math") == 1.0
    assert outcome_reward(text, ["7", "0.5"]) == outcome_reward(text, ["0.5"], metric="f1") == 0.0
    assert is_correct(text, ["0.5"], metric="math") and not is_correct(text, ["0.5"])


def test_the_maths_metric_keeps_the_format_rule_and_the_bonus():
    assert outcome_reward("\\boxed{0.5}", ["0.5"], metric="math") == -1.0
    calls = "<search>a</search><result>b</result><python>c</python><result>d</result>"
    right, wrong = (f"<think>t</think>{calls}<answer>\\boxed{{{x}}}</answer>" for x in ("1/2", "3"))
    assert outcome_reward(right, ["0.5"], metric="math") == pytest.approx(1.1)
    assert outcome_reward(wrong, ["0.5"], metric="math") == 0.0
    assert not is_correct("", ["0.5"], metric="math")


def test_verdicts_are_counted():
    before = math_counts()
    math_equal("0.25", "1/4")
    assert math_counts()["equal"] == before["equal"] + 1

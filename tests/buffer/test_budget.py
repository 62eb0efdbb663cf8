"""What an endpoint may spend: the caps, and the account on disk."""

from __future__ import annotations

import pytest

from rapo_jax.buffer.endpoint import Budget, Spent
from rapo_jax.buffer.trajectories import UNSCORED, AgentTrajectory
from rapo_jax.buffer.trajectory_file import TrajectoryFile
from tests.buffer.chats import ASK, chat, make, sample, searches_once
from tests.io.full_disk import room_for


def test_empty_answers_are_not_asked_for_beyond_the_cap(serve, tmp_path):
    asked = []
    url = serve(lambda h, b: asked.append(1) or chat("", tokens=40))
    with pytest.raises(Spent, match="max_tokens_total=100"):
        make(url, tmp_path, max_tokens_total=100)[0].steps(ASK)
    assert len(asked) == 2


@pytest.mark.parametrize("claim", [10**12, 10**4000, -1, True, "many", 1e12])
def test_a_claim_of_tokens_is_bounded_by_what_was_sent_and_the_longest_answer(
    serve, tmp_path, claim
):
    endpoint, budget = make(serve(lambda h, b: chat("hm", tokens=claim)), tmp_path)
    endpoint.steps(ASK)
    assert 0 <= budget.tokens <= len(str(ASK)) + 50


def test_a_cap_on_calls_ends_the_asking_and_keeps_what_is_finished(serve, tmp_path):
    asked = []

    def answer(handler, body):
        asked.append(1)
        return searches_once(handler, body)

    url = serve(answer)
    endpoint, _ = make(url, tmp_path, max_calls_total=5)
    kept, outcome = sample(endpoint, ["a", "b", "c", "d"])
    assert list(kept) == ["a", "b"] and len(asked) == 5
    assert outcome.spent == "buffer.endpoint.max_calls_total=5: 5 are spent"
    again, _ = make(url, tmp_path, max_calls_total=5)  # another build has the same account
    assert sample(again, ["c"])[1].spent and len(asked) == 5


def test_a_cap_on_tokens_holds_an_estimate_apart_before_each_call(tmp_path):
    budget = Budget(tmp_path / "spent.jsonl", max_calls=0, max_tokens=100)
    budget.take(60)
    with pytest.raises(Spent, match="max_tokens_total=100: 60 are spent"):
        budget.take(60)
    budget.correct(-50)
    budget.take(60)
    again = Budget(tmp_path / "spent.jsonl", max_calls=0, max_tokens=100)
    assert (again.calls, again.tokens) == (2, 70)
    (tmp_path / "spent.jsonl").write_text("x\n")
    with pytest.raises(ValueError, match="spent.jsonl: damaged"):
        Budget(tmp_path / "spent.jsonl", max_calls=0, max_tokens=100)


@pytest.mark.parametrize("torn", ["", "[", "[1", "[1, 5", "[0, -"])
def test_a_line_of_the_account_that_a_kill_cut_short_counts_nothing(tmp_path, torn):
    path = tmp_path / "spent.jsonl"
    path.write_text(f"[1, 5]\n{torn}")
    for calls in (2, 3):
        budget = Budget(path, max_calls=0, max_tokens=0)
        budget.take(5)
        assert (budget.calls, budget.tokens) == (calls, 5 * calls)


def test_a_whole_record_without_its_line_end_counts(tmp_path):
    (tmp_path / "spent.jsonl").write_text("[1, 5]")
    assert Budget(tmp_path / "spent.jsonl", max_calls=0, max_tokens=0).tokens == 5


def test_on_a_full_disk_no_call_is_made_and_a_paid_answer_is_returned(serve, tmp_path, caplog):
    asked = []
    size = len("[1, 50]\n")  # of the estimate: there is no room for its correction
    url = serve(lambda h, b: asked.append(1) or chat("hm", tokens=2))
    endpoint, budget = make(url, tmp_path)
    with room_for(size):
        assert endpoint.steps(ASK) == ["hm"]
        with pytest.raises(ValueError, match="spent.jsonl: cannot be written"):
            endpoint.steps(ASK)
    assert len(asked) == 1 and "estimates stay uncorrected" in caplog.text
    assert (budget.calls, budget.tokens) == (1, 50)
    assert (tmp_path / "spent.jsonl").read_text() == "[1, 50]\n"
    endpoint.steps(ASK)
    again = Budget(tmp_path / "spent.jsonl", max_calls=0, max_tokens=0)
    assert (again.calls, again.tokens) == (2, 52)


def test_a_trajectory_that_does_not_fit_leaves_the_finished_ones_whole(tmp_path):
    files = TrajectoryFile(tmp_path, "a")
    files.begin({})
    rows = [AgentTrajectory("q", "who?", ["x"], UNSCORED, "me", k) for k in range(2)]
    files.append(rows[:1])
    with (
        room_for(files.path.stat().st_size + 9),
        pytest.raises(ValueError, match="free disk space"),
    ):
        files.append(rows[1:])
    assert TrajectoryFile(tmp_path, "a").begin({}) == rows[:1]

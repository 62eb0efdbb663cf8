from __future__ import annotations

import json

from rapo_jax.report.trajectories import ROWS, choose_trajectories


def line(step, question, row, retrievals=0, reward=0.0):
    segments = [{"source": "RETRIEVED"}] * retrievals + [{"source": "POLICY"}]
    return json.dumps({"step": step, "stage": "rl", "question_id": question, "row": row,
                       "reward": reward, "segments": segments}) + "\n"  # fmt: skip


def chosen(path, limit):
    found, total = choose_trajectories(path, limit)
    return [(each["step"], each["question_id"], each["row"]) for each in found], total


def test_few_of_many_are_chosen_from_first_to_last_step(tmp_path):
    path = tmp_path / "t.jsonl"
    path.write_text("".join(line(s, "q", r) for s in range(100) for r in range(8)))
    found, total = chosen(path, 5 * ROWS)
    steps = [step for step, _, _ in found]
    assert total == 800 and len(found) == 5 * ROWS
    assert (steps[0], steps[-1], len(set(steps))) == (0, 99, 5)


def test_the_question_with_retrievals_is_shown_with_an_on_policy_row_beside_them(tmp_path):
    path = tmp_path / "t.jsonl"
    plain = [line(1, "plain", row) for row in range(8)]
    mixed = [line(1, "mixed", row, retrievals=row >= 3) for row in range(9)]
    path.write_text("".join(plain + mixed))
    found, _ = chosen(path, ROWS)
    assert found == [(1, "mixed", 3), (1, "mixed", 4), (1, "mixed", 5), (1, "mixed", 0)]


def test_few_steps_leave_room_for_more_questions_of_each(tmp_path):
    path = tmp_path / "t.jsonl"
    path.write_text(
        "".join(line(1, f"q{q}", row, reward=q * row) for q in range(9) for row in (0, 1))
    )
    found, _ = chosen(path, 6)
    assert [question for _, question, _ in found] == ["q8", "q8", "q7", "q7", "q6", "q6"]


def test_a_row_written_again_after_a_resume_is_shown_once_as_it_was_last(tmp_path):
    path = tmp_path / "t.jsonl"
    path.write_text(line(1, "q", 0, reward=0.0) + line(1, "q", 0, reward=1.0))
    found, total = choose_trajectories(path, 60)
    assert total == 1 and [each["reward"] for each in found] == [1.0]


def test_broken_lines_and_odd_values_are_passed_over(tmp_path):
    path = tmp_path / "t.jsonl"
    odd = json.dumps({"step": None, "segments": "no list", "row": "x", "reward": "y"}) + "\n"
    path.write_bytes(b"\xff\xfe\n[]\n" + odd.encode() + line(2, "q", 0).encode()[:-9])
    found, total = choose_trajectories(path, 60)
    assert total == 1 and found[0]["segments"] == "no list"


def test_an_empty_file_holds_nothing(tmp_path):
    path = tmp_path / "t.jsonl"
    path.touch()
    assert choose_trajectories(path, 60) == ([], 0)


def test_trajectories_of_rl_come_before_those_of_another_stage(tmp_path):
    path = tmp_path / "t.jsonl"
    other = line(1, "q", 0).replace('"stage": "rl"', '"stage": "heldout"')
    path.write_text(other + line(5, "q", 0))
    found, _ = choose_trajectories(path, 60)
    assert [each["stage"] for each in found] == ["rl", "heldout"]


def test_questions_are_ranked_by_rows_with_a_retrieval_and_then_by_how_far_rewards_differ(tmp_path):
    path = tmp_path / "t.jsonl"
    path.write_text(
        line(1, "one row, three times", 0, retrievals=3, reward=1.0)
        + line(1, "one row, three times", 1)
        + line(1, "two rows", 0, retrievals=1) + line(1, "two rows", 1, retrievals=1)
        + line(1, "all right", 0, reward=1.0) + line(1, "all right", 1, reward=1.0)
        + line(1, "half right", 0, reward=0.5) + line(1, "half right", 1)
    )  # fmt: skip
    found, _ = chosen(path, 60)
    names = [question for _, question, row in found if row == 0]
    assert names == ["two rows", "one row, three times", "half right", "all right"]

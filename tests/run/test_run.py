"""Opening a run: what is prepared once, and invalid values are rejected before any compile."""

from __future__ import annotations

import jax
import pytest

from rapo_jax.run.checks import check_retrieved_tokens
from rapo_jax.run.run import open_run


def test_rows_that_cannot_be_spread_over_the_devices_are_refused(small_settings, tmp_path):
    with pytest.raises(ValueError, match="rollout.questions=2: must be a multiple of the 8 dev"):
        open_run(small_settings(), tmp_path)
    changes = {"rollout.questions": 8, "evaluate.rows": 12}
    with pytest.raises(ValueError, match="evaluate.rows=12: must be a multiple of the 8 devices"):
        open_run(small_settings(changes), tmp_path)
    changes = {"rollout.questions": 8, "evaluate.rows": 16, "rollout.slots": 12}
    with pytest.raises(ValueError, match="rollout.slots=12: must be a multiple of the 8 devices"):
        open_run(small_settings(changes), tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("key", ["n_train", "n_eval"])
def test_a_split_without_questions_is_refused(small_settings, tmp_path, key):
    settings = small_settings({f"task.chains.{key}": 0})
    with pytest.raises(ValueError, match="task.chains.n_entities=16: needs .*more than n_train"):
        open_run(settings, tmp_path, devices=jax.devices()[:1])


def test_retrieved_traces_whose_tags_alone_do_not_fit_are_refused_where_there_are_any(
    small_settings, trunk, tmp_path
):
    needed = len(trunk.tokens.encode_protocol("<retrieve></retrieve>"))
    with pytest.raises(ValueError, match=f"retrieved_tokens={needed - 1}: .* need {needed}; raise"):
        small = small_settings({"rollout.retrieved_tokens": needed - 1})
        open_run(small, tmp_path, devices=jax.devices()[:1])
    check_retrieved_tokens(small_settings({"rollout.retrieved_tokens": needed}), trunk.tokens)
    few = {"rollout.retrieved_tokens": needed - 1, "method": "grpo"}
    with pytest.raises(ValueError, match=r"nothing \(rollout.n_hybrid=0, sft.inject_share=0\)"):
        check_retrieved_tokens(small_settings(few), trunk.tokens)  # the cold start shows some
    check_retrieved_tokens(small_settings(few | {"sft.inject_share": 0.0}), trunk.tokens)


def test_a_run_takes_the_vocabulary_of_its_tokenizer_and_the_folders_it_is_given(trunk):
    assert trunk.model.vocab == len(trunk.tokens.bytes_V)
    assert str(trunk.cold_start) == trunk.settings.sft.folder
    assert str(trunk.buffer) == trunk.settings.buffer.folder
    assert set(trunk.tools) == {"search", "python"}
    assert (trunk.cold_start / "tokenizer" / "tokenizer.json").is_file()


def test_without_folders_everything_lies_in_the_workdir(branch):
    run = branch({"sft.folder": "", "buffer.folder": ""})
    assert run.cold_start == run.workdir / "coldstart"
    assert run.buffer == run.workdir / "buffer"

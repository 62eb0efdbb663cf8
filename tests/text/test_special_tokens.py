"""Added tokens that only tokenizer_config.json names."""

from __future__ import annotations

import json

import pytest
import transformers

from rapo_jax.text.tokens import load_tokens
from tests.text.test_chat import PUBLISHED, make

FLAGS = {"lstrip": False, "rstrip": False, "single_word": False, "normalized": False}


@pytest.fixture
def extra(tmp_path):
    """Adds a token with an id so many beyond the last; returns the next free id and the folder."""
    folder = make(tmp_path, *PUBLISHED["qwen2.5"])

    def add(beyond, **changes):
        new = len(load_tokens(folder).bytes_V)
        config = json.loads((folder / "tokenizer_config.json").read_text()) | changes
        token = {"content": "<|extra|>", "special": True, **FLAGS}
        config["added_tokens_decoder"] = {str(new + beyond): token}
        config["chat_template"] += "<|extra|>"
        (folder / "tokenizer_config.json").write_text(json.dumps(config))
        return new, folder

    return add


def test_a_token_of_tokenizer_config_alone_is_taken_as_transformers_takes_it(extra):
    new, folder = extra(0, eos_token="<|extra|>")
    found = load_tokens(folder)
    theirs = transformers.PreTrainedTokenizerFast.from_pretrained(folder)
    assert found.bytes_V[new] == b"<|extra|>" and found.eos_ids == (new,) == (theirs.eos_token_id,)
    assert found.prompt_ids("", "x<|extra|>").count(new) == 1
    with pytest.raises(ValueError, match=rf"'<\|extra\|>' as id {new}, beyond .* of {new}"):
        load_tokens(folder, vocab_size=new)


def test_the_id_behind_the_last_token_ends_no_response(extra):
    new, folder = extra(0)
    generation = folder / "generation_config.json"
    generation.write_text(json.dumps({"eos_token_id": new}))
    assert new in load_tokens(folder).eos_ids
    generation.write_text(json.dumps({"eos_token_id": new + 1}))
    with pytest.raises(ValueError, match=rf"eos_token_id={new + 1}: .* 0 … {new}$"):
        load_tokens(folder)


def test_a_token_with_another_id_than_transformers_gives_it_is_refused_by_name(extra):
    new, folder = extra(5)
    with pytest.raises(ValueError, match=rf"'<\|extra\|>' as id {new + 5}, but .* gives it {new}"):
        load_tokens(folder)

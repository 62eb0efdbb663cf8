"""Special tokens by the other files of a tokenizer's folder: added ones, and those that stop."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rapo_jax.io.files import read_object

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

GENERATION_FILE = "generation_config.json"


def config_tokens(
    tokenizer: PreTrainedTokenizerFast,
    known: Sequence[Mapping[str, object]],
    key: str,
    vocab_size: int,
) -> list[dict[str, object]]:
    """Added tokens that tokenizer_config.json alone names, with the ids that transformers gives.

    Raises:
        ValueError: the file names another id, or the id is beyond the model's vocabulary.
    """
    wanted = tokenizer.init_kwargs.get("added_tokens_decoder") or {}
    wanted_ids = {str(token): int(i) for i, token in wanted.items()}
    there = {token["content"] for token in known}
    added: list[dict[str, object]] = []
    for i, token in tokenizer.added_tokens_decoder.items():
        if token.content in there:
            continue
        wanted_id = wanted_ids.get(token.content, i)
        if wanted_id != i or 0 < vocab_size <= i:
            where = f"id {wanted_id}, but transformers gives it {i}"
            if wanted_id == i:
                where = f"id {i}, beyond the model's vocabulary of {vocab_size}"
            raise ValueError(
                f"{key}: tokenizer_config.json adds the token {token.content!r} as {where}; add it "
                "to tokenizer.json, or remove it"
            )
        flags = ("single_word", "lstrip", "rstrip", "normalized", "special")
        added.append(
            {"id": i, "content": token.content, **{name: getattr(token, name) for name in flags}}
        )
    return added


def stop_ids(
    folder: str | Path, tokenizer: PreTrainedTokenizerFast, *, known: int
) -> tuple[int, ...]:
    """Ids that end a response: the tokenizer's, and those of generation_config.json.

    Without the latter, those of config.json. Raises ValueError for an id of `known` or more.
    """
    folder, eos = Path(folder), tokenizer.eos_token_id
    eos_ids = [eos] if isinstance(eos, int) else []
    names = (GENERATION_FILE, "config.json")
    config = next((folder / name for name in names if (folder / name).is_file()), None)
    if config is not None:  # chat models may list several, of which the tokenizer has one
        ids = read_object(config).get("eos_token_id")
        for i in ids if isinstance(ids, list) else [] if ids is None else [ids]:
            if type(i) is not int or not 0 <= i < known:
                raise ValueError(
                    f"{config}: eos_token_id={i!r}: expected an id of the tokenizer, "
                    f"0 … {known - 1}"
                )
            eos_ids.append(i)
    if not eos_ids:
        raise ValueError(f"tokenizer.folder={str(folder)!r}: no eos_token is named in its files")
    return tuple(dict.fromkeys(eos_ids))

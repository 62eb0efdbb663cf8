"""Tokenizers as Qwen and Llama 3 ship them: several tokens to a tag, merged with its neighbours."""

from __future__ import annotations

import json

import numpy as np
import pytest
import transformers
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)

from rapo_jax.text.boundary import boundary_automaton
from rapo_jax.text.protocol import STOPS, tags
from rapo_jax.text.tokens import load_tokens

SPLIT = {
    "qwen": r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
    "llama": r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
}
CHAT = {
    "qwen": "{% if messages[0].role != 'system' %}<|im_start|>system\nYou are Qwen.<|im_end|>\n"
    "{% endif %}{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}",
    "llama": "{{ bos_token }}{% for m in messages %}<|start_header_id|>{{ m.role }}"
    "<|end_header_id|>\n\n{{ m.content | trim }}<|eot_id|>{% endfor %}"
    "{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}",
}
SPECIAL = {
    "qwen": ("<|endoftext|>", "<|im_start|>", "<|im_end|>"),
    "llama": (
        "<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>",
        "<|eom_id|>", "<|eot_id|>",
    ),
}  # fmt: skip
CORPUS = [
    f"<think>The friend of {name} has {i * 7} coins.</think><search>friend of {name}.</search>\n"
    f"<python>print(f({i}))</python>\n<answer>So it is \\boxed{{{i}}}.</answer>\n"
    for i, name in enumerate(("Marbo", "Tulvik", "Zendra", "Quillo") * 5)
]
PADDED = 512


def make(kind, folder):
    """A folder as the hub has it; returns the tokenizer in it."""
    tokenizer = Tokenizer(models.BPE(ignore_merges=kind == "llama"))
    if kind == "qwen":
        tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(SPLIT[kind]), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=420, show_progress=False, initial_alphabet=alphabet)
    tokenizer.train_from_iterator(CORPUS, trainer)
    tokenizer.add_special_tokens([AddedToken(x, normalized=False) for x in SPECIAL[kind]])
    if kind == "qwen":  # as Qwen3: tokens of their own, but ordinary text
        ids = ("<tool_call>", "</tool_call>", "<think>", "</think>")
        tokenizer.add_tokens([AddedToken(x, normalized=False) for x in ids])
        config = {"tokenizer_class": "Qwen2Tokenizer", "chat_template": CHAT[kind]}
        config |= {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>", "bos_token": None}
        tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    else:
        bos = "<|begin_of_text|>"
        start = processors.TemplateProcessing(
            single=f"{bos} $A", special_tokens=[(bos, tokenizer.token_to_id(bos))]
        )
        tokenizer.post_processor = processors.Sequence([processors.ByteLevel(), start])
        config = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": bos}
        config |= {"eos_token": "<|end_of_text|>", "clean_up_tokenization_spaces": True}
        (folder / "chat_template.jinja").write_text(CHAT[kind])
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return tokenizer


@pytest.fixture(scope="module", params=["qwen", "llama"])
def hub(request, tmp_path_factory):
    """(our tokens, the tokenizer itself, its folder)"""
    folder = tmp_path_factory.mktemp(request.param)
    tokenizer = make(request.param, folder)
    return load_tokens(folder, vocab_size=PADDED), tokenizer, folder


@pytest.fixture(scope="module")
def automaton(hub):
    return boundary_automaton(hub[0].bytes_V)


def closed(automaton, ids):
    """The stop that a walk over token ids has closed, or None."""
    state = 0
    for i in ids:
        state = int(automaton.next_state_AV[state, i])
    return None if state < automaton.first_accept else STOPS[state - automaton.first_accept]


def first_stop(text):
    places = {stop: text.find(stop) + len(stop) for stop in STOPS if stop in text}
    return min(places, key=lambda stop: places[stop]) if places else None


def plain_ids(tokenizer, text):
    return tokenizer.encode(text, add_special_tokens=False).ids


def test_tags_are_several_tokens_and_their_ends_merge_with_neighbours(hub):
    tokens, tokenizer, _ = hub
    shown = [tokens.bytes_V[i] for i in plain_ids(tokenizer, "of Marbo.</search>\n")]
    assert b".</" in shown and b">\n" in shown
    alone = plain_ids(tokenizer, "</search>")
    merged = plain_ids(tokenizer, ".</search>\n")
    assert len(alone) > 1 and not set(alone[:1]) & set(merged)


pieces = st.sampled_from(
    [*STOPS, *tags(), "</", "<", "/", "search", ">", ".", ")", "}.", "\n", " ", "x", "12", "é",
     "日", "<|im_end|>", "<|eot_id|>", "</tool_call>", "</think>"]
)  # fmt: skip


@given(st.lists(pieces, max_size=10).map("".join))
def test_a_steps_end_is_found_whatever_the_text_around_it_merges_into(hub, automaton, text):
    tokens, tokenizer, _ = hub
    ids = plain_ids(tokenizer, text)
    assert tokens.decode(ids) == text
    assert closed(automaton, ids) == first_stop(text)
    ended = [n for n in range(len(ids) + 1) if closed(automaton, ids[:n]) is not None]
    if ended:  # not a token later than its last byte
        before = tokens.decode(ids[: ended[0] - 1])
        assert first_stop(before) is None


@given(ids=st.lists(st.integers(0, PADDED - 1), max_size=12), at=st.integers(0, 12))
def test_a_steps_end_is_found_in_token_sequences_that_no_text_encodes_to(hub, automaton, ids, at):
    tokens, tokenizer, _ = hub
    ids = [*ids[:at], *plain_ids(tokenizer, "</answer>"), *ids[at:]]
    read = b"".join(tokens.bytes_V[i] for i in ids)
    places = {stop: read.find(stop.encode()) + len(stop) for stop in STOPS if stop.encode() in read}
    assert closed(automaton, ids) == min(places, key=lambda stop: places[stop])


def test_a_chat_token_inside_a_tag_keeps_it_open(hub, automaton):
    tokens, tokenizer, _ = hub
    (end,) = [i for i in tokens.eos_ids if tokens.bytes_V[i] in (b"<|im_end|>", b"<|end_of_text|>")]
    head, tail = plain_ids(tokenizer, "</sea"), plain_ids(tokenizer, "rch>")
    assert closed(automaton, [*head, *tail]) == "</search>"
    assert closed(automaton, [*head, end, *tail]) is None


def test_every_token_has_the_bytes_that_transformers_decodes_it_to(hub):
    tokens, tokenizer, _ = hub
    for i in range(tokenizer.get_vocab_size()):
        shown = tokenizer.decode([i], skip_special_tokens=False)
        assert tokens.bytes_V[i].decode("utf-8", "replace") == shown
    assert len(tokens.bytes_V) == PADDED and tokens.bytes_V[-1] == b""


def test_text_of_ours_is_encoded_as_in_the_training_of_the_model(hub):
    tokens, tokenizer, _ = hub
    for text in CORPUS:
        ids = tokens.encode_protocol(text)
        assert tokens.decode(ids) == text
        assert ids == plain_ids(tokenizer, text)


def test_foreign_text_gets_no_added_token_but_decodes_to_itself(hub):
    tokens, tokenizer, folder = hub
    added = json.loads((folder / "tokenizer.json").read_text())["added_tokens"]
    text = "a".join(token["content"] for token in added)
    ids = tokens.encode(text)
    assert tokens.decode(ids) == text and not {token["id"] for token in added} & set(ids)


@pytest.mark.parametrize("system", ["", "Be kind."])
def test_the_prompt_is_the_folders_own_template_and_begins_once(hub, system):
    tokens, _, folder = hub
    messages = [{"role": "system", "content": system}] if system else []
    messages.append({"role": "user", "content": "who is it?"})
    theirs = transformers.AutoTokenizer.from_pretrained(folder).apply_chat_template(
        messages, tokenize=True, add_generation_prompt=True, return_dict=False
    )
    ids = tokens.prompt_ids(system, "who is it?")
    assert ids == theirs
    text = tokens.decode(ids)
    assert text.count("<|begin_of_text|>") == text.startswith("<|begin_of_text|>")


def test_a_question_cannot_forge_a_turn(hub):
    tokens, tokenizer, _ = hub
    special = {token for token, _ in tokenizer.get_added_tokens_decoder().items()}
    forged = tokens.prompt_ids("", "x" + "".join(SPECIAL["qwen"] + SPECIAL["llama"]))
    honest = tokens.prompt_ids("", "x")
    assert [i for i in forged if i in special] == [i for i in honest if i in special]


def copy_to(folder, target, **files):
    """The folder with further JSON files; None leaves a file out."""
    for path in folder.iterdir():
        if files.get(path.name.split(".")[0], "") is not None:
            (target / path.name).write_bytes(path.read_bytes())
    for name, content in files.items():
        if content is not None:
            (target / f"{name}.json").write_text(json.dumps(content))
    return target


def test_stop_ids_are_those_of_the_generation_config_one_or_several(hub, tmp_path):
    tokens, tokenizer, folder = hub
    (first,) = tokens.eos_ids
    other = tokenizer.token_to_id(SPECIAL["llama" if "<|eot_id|>" in names(hub) else "qwen"][0])
    for ids in (other, [other], [other, first], [first, other]):
        copy_to(folder, tmp_path, generation_config={"eos_token_id": ids})
        assert load_tokens(tmp_path).eos_ids == (first, other)
    copy_to(folder, tmp_path, generation_config={"eos_token_id": None})
    assert load_tokens(tmp_path).eos_ids == (first,)


def names(hub):
    return {token.decode("utf-8", "replace") for token in hub[0].bytes_V}


def test_without_a_generation_config_the_models_config_names_the_stop_ids(hub, tmp_path):
    tokens, _, folder = hub
    config = {"model_type": "llama", "eos_token_id": [0, 1]}
    copy_to(folder, tmp_path, config=config)
    assert load_tokens(tmp_path).eos_ids == (*tokens.eos_ids, 0, 1)
    copy_to(folder, tmp_path, config=config, generation_config={"eos_token_id": 2})
    assert load_tokens(tmp_path).eos_ids == (*tokens.eos_ids, 2)


@pytest.mark.parametrize("wrong", [-1, 100_000, "</s>", True, [0, None]])
def test_a_stop_id_that_is_none_of_the_tokenizers_is_refused(hub, tmp_path, wrong):
    copy_to(hub[2], tmp_path, generation_config={"eos_token_id": wrong})
    with pytest.raises(ValueError, match=r"generation_config\.json: eos_token_id=.*expected an id"):
        load_tokens(tmp_path)


def test_padding_is_the_folders_own_or_a_stop_id(hub):
    tokens = hub[0]
    shown = tokens.bytes_V[tokens.pad_id]
    assert shown == (b"<|endoftext|>" if b"<|im_end|>" in tokens.bytes_V else b"<|end_of_text|>")


def test_a_folder_without_chat_template_is_refused_with_what_to_do(hub, tmp_path):
    copy_to(hub[2], tmp_path, tokenizer_config={"eos_token": "<|x|>"}, chat_template=None)
    with pytest.raises(ValueError, match=r"tokenizer\.folder=.*no chat template; .*jinja"):
        load_tokens(tmp_path)


def test_a_broken_tokenizer_file_is_named(hub, tmp_path):
    copy_to(hub[2], tmp_path)
    (tmp_path / "tokenizer.json").write_text('{"model": ')
    with pytest.raises(ValueError, match=r"tokenizer\.json: not JSON"):
        load_tokens(tmp_path)


def test_a_folder_that_cuts_and_pads_texts_does_neither_to_ours(hub, tmp_path):
    tokens, _, folder = hub
    spec = json.loads((folder / "tokenizer.json").read_text())
    cut = {"direction": "Right", "max_length": 4, "strategy": "LongestFirst", "stride": 0}
    pad = {"strategy": {"Fixed": 90}, "direction": "Right", "pad_to_multiple_of": None}
    pad |= {"pad_id": 0, "pad_type_id": 0, "pad_token": "!"}
    text = "The friend of Marbo has 42 coins."
    assert 4 < len(tokens.encode(text)) < 90
    for change in ({"truncation": cut}, {"padding": pad}):
        found = load_tokens(copy_to(folder, tmp_path, tokenizer=spec | change))
        assert found.encode(text) == tokens.encode(text)
        assert found.prompt_ids("", text) == tokens.prompt_ids("", text)


def test_prompts_follow_tokenizer_json_where_transformers_would_rebuild_it(hub, tmp_path):
    """transformers 5 makes any tokenizer of a qwen2 folder Qwen's, with its rules for numbers."""
    _, tokenizer, folder = hub
    copy_to(folder, tmp_path, config={"model_type": "qwen2"})
    tokens = load_tokens(tmp_path)
    ids = tokens.prompt_ids("", "42 coins, 1234567 e\u0301")
    assert ids == plain_ids(tokenizer, tokens.decode(ids))
    assert np.all(np.array(ids) < tokenizer.get_vocab_size())
    assert len(tokens.bytes_V) == tokenizer.get_vocab_size()

"""Tokenizers: building and loading one, encoding and decoding.

Byte-level tokenizers only (Qwen2, Qwen3, Llama 3, and those of `build_tokenizer`): each token is a
fixed sequence of bytes, so decoding joins bytes and an automaton over bytes finds a step's end.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING

import numpy as np

from rapo_jax.io.files import read_object, write_text
from rapo_jax.text.chat import Frame, check_arguments, make_frame, opened_text, split_control
from rapo_jax.text.chat_turns import with_turns
from rapo_jax.text.protocol import neutralise, tags
from rapo_jax.text.protocols import Protocol, rapo
from rapo_jax.text.special_tokens import config_tokens, stop_ids
from rapo_jax.text.token_bytes import token_bytes

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast

SYSTEM, USER, ASSISTANT, END, PAD = CHAT_TOKENS = (
    "<|system|>",
    "<|user|>",
    "<|assistant|>",
    "<|end|>",
    "<|pad|>",
)
BOXED = "\\boxed{"
CHAT_TEMPLATE = (
    "{% for message in messages %}{{ '<|' + message['role'] + '|>' + message['content'] }}"
    "{% if message['role'] == 'assistant' %}{{ '<|end|>' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)
OPENED_TOKENS = 64
"""At the end of a prompt, among which is what the template opens of the response."""
_PIECE = (  # as in Qwen2, but numbers in groups of at most two digits
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)| ?\p{L}+|\p{N}{1,2}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def _splitter(texts: Iterable[str]) -> re.Pattern[str]:
    return re.compile("(" + "|".join(map(re.escape, texts)) + ")")


def build_tokenizer(
    folder: str | Path, corpus: Iterable[str], *, vocab_size: int, user_tools: tuple[str, ...] = ()
) -> None:
    """Makes a byte-level tokenizer of at most `vocab_size` tokens and saves a Hugging Face folder.

    Its tokens are the 256 bytes, and every word, number and sign that the corpus holds at least
    twice, the most frequent first. A trained BPE would also spend tokens on the pieces that its
    merges go through; a small model is better without. The tool tags, those of `user_tools` too,
    `\\boxed{` and the chat tokens are one token each; `<|end|>` is eos. The same corpus gives the
    same files.
    """
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers

    protocol_tokens = (*tags(user_tools), BOXED)
    protocol_token = _splitter(protocol_tokens)
    added = len(protocol_tokens) + len(CHAT_TOKENS)
    if vocab_size < 256 + added:
        raise ValueError(
            f"tokenizer.vocab_size={vocab_size}: 256 bytes and {added} tags need at least "
            f"{256 + added}"
        )
    splitter = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_PIECE), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    words: Counter[str] = Counter()
    for text in corpus:
        for piece in protocol_token.split(text):
            if piece and not protocol_token.fullmatch(piece):
                words.update(word for word, _ in splitter.pre_tokenize_str(piece))
    common = sorted((-n, word) for word, n in words.items() if n > 1 and len(word) > 1)
    room = vocab_size - added - 256
    scored = [(letter, -20.0) for letter in sorted(pre_tokenizers.ByteLevel.alphabet())]
    scored += [(word, -1.0) for _, word in common[:room]]
    tokenizer = Tokenizer(models.Unigram(scored))
    tokenizer.pre_tokenizer = splitter
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_tokens([AddedToken(text, normalized=False) for text in protocol_tokens])
    tokenizer.add_special_tokens([AddedToken(text, normalized=False) for text in CHAT_TOKENS])
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": END,
        "pad_token": PAD,
        "additional_special_tokens": [SYSTEM, USER, ASSISTANT],
        "chat_template": CHAT_TEMPLATE,
        "clean_up_tokenization_spaces": False,
    }
    write_text(folder / "tokenizer_config.json", json.dumps(settings, indent=2) + "\n")  # the last


@dataclass(frozen=True, eq=False)
class Tokens:
    """A loaded tokenizer.

    `bytes_V[i]` is the exact bytes of token i, empty for ids without a token; each of `eos_ids`
    ends a response; `fingerprint` is the sha256 of tokenizer.json; `user_tools` are the names of
    the tags of user tools; `protocol` is that of the run.
    """

    tokenizer: PreTrainedTokenizerFast = field(repr=False)
    """Its chat template alone is used, with the switches `template_arguments`."""
    bytes_V: list[bytes] = field(repr=False)
    eos_ids: tuple[int, ...]
    pad_id: int
    fingerprint: str
    user_tools: tuple[str, ...]
    protocol: Protocol
    template_arguments: Mapping[str, object]
    _exact: Tokenizer = field(repr=False)
    """tokenizer.json itself: transformers rebuilds some, every Qwen2 one with Qwen's rules."""
    _plain: Tokenizer = field(repr=False)
    """The same without added tokens."""
    _tag_ids: dict[str, int] = field(repr=False)
    _at_tags: re.Pattern[str] = field(repr=False)
    _key: str
    _frames: dict[str, Frame] = field(default_factory=dict, repr=False)

    def decode(self, ids: Iterable[int]) -> str:
        """The exact text of a token sequence, chat tokens included; broken UTF-8 becomes '�'."""
        ids = ids.tolist() if isinstance(ids, np.ndarray) else ids
        table = self.bytes_V
        return b"".join([table[i] for i in ids]).decode("utf-8", "replace")

    def encode(self, text: str) -> list[int]:
        """Token ids of foreign text; never an added token (chat token, tool tag)."""
        text = text.encode("utf-8", "replace").decode("utf-8")
        return self._plain.encode(text, add_special_tokens=False).ids

    def encode_protocol(self, text: str) -> list[int]:
        """Token ids of text in which tool tags are ours; a tag that is an added token becomes it.

        Never a chat token. Foreign text inside must have been neutralised, as
        `protocol.render_result` does.
        """
        ids: list[int] = []
        # Tags that are no added token stay in the text: BPE merges them with neighbours, as it
        # did in the texts that the model was trained on.
        for piece in self._at_tags.split(text) if self._tag_ids else (text,):
            tag = self._tag_ids.get(piece)
            if tag is not None:
                ids.append(tag)
            elif piece:
                ids.extend(self.encode(piece))
        return ids

    def encode_turns(self, *pieces: str) -> list[int]:
        """Token ids of texts of ours that may hold chat tokens, every other one foreign text."""
        parts: list[list[int] | str | None] = []
        for number, piece in enumerate(pieces):
            parts += [piece] if number % 2 else split_control(self._exact, piece)
        return Frame(tuple(parts), str).ids("", self.encode)

    def prompt_ids(self, system: str, question: str) -> list[int]:
        """The chat-templated prompt up to the assistant's turn; the question is plain text, put
        into the protocol's template.

        An empty `system` leaves the system turn to the template.
        """
        if system not in self._frames:
            self._frames[system] = make_frame(
                self.tokenizer,
                self._exact,
                system,
                arguments={**self.template_arguments, **self.protocol.template_arguments},
                key=self._key,
            )
        before, after = self.protocol.user
        asked = f"{before}{neutralise(question, self.protocol.tags)}{after}"
        return self._frames[system].ids(asked, self.encode)

    def opened(self, prompt_ids: Sequence[int] | np.ndarray) -> tuple[str, int]:
        """The beginning of the response that the template wrote, and its number of tokens.

        They are at the end of the prompt; see `chat.opened_text`.
        """
        opened = opened_text(self.decode(prompt_ids[-OPENED_TOKENS:]))
        for count in range(OPENED_TOKENS + 1 if opened else 0):
            if self.decode(prompt_ids[len(prompt_ids) - count :]) == opened:
                return opened, count
        return "", 0


def load_tokens(
    folder: str | Path,
    *,
    vocab_size: int = 0,
    user_tools: tuple[str, ...] = (),
    protocol: Protocol | None = None,
    template_arguments: Mapping[str, object] = MappingProxyType({}),
) -> Tokens:
    """Loads a Hugging Face tokenizer folder; `bytes_V` is padded to a model's `vocab_size`.

    `protocol` None is ours, with the tags of `user_tools`.

    Raises:
        ValueError: no byte-level tokenizer, no chat template or one without these arguments, or no
            id that ends a response.
    """
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast

    key = f"tokenizer.folder={str(folder)!r}"
    path = Path(folder) / "tokenizer.json"
    if not path.is_file():
        raise ValueError(
            f"{key}: there is no tokenizer.json in this folder; name one that has it, such as the "
            "folder of the model"
        )
    spec = read_object(path)
    if "ByteLevel" not in json.dumps([spec.get("pre_tokenizer"), spec.get("decoder")]):
        raise ValueError(f"{key}: only byte-level BPE (Qwen, Llama 3) gives exact bytes")
    # Whatever class the folder names: AutoTokenizer would import every kind of model there is.
    tokenizer = PreTrainedTokenizerFast.from_pretrained(str(folder))
    if not tokenizer.chat_template:
        raise ValueError(
            f"{key}: it has no chat template; use an instruction-tuned model's tokenizer, or put a "
            "chat_template.jinja into the folder"
        )
    check_arguments(template_arguments, tokenizer.get_chat_template())
    protocol = protocol or rapo(user_tools)
    spec |= dict.fromkeys(("post_processor", "truncation", "padding"))
    spec["added_tokens"] += config_tokens(tokenizer, spec["added_tokens"], key, vocab_size)
    exact = Tokenizer.from_str(json.dumps(spec))
    plain = Tokenizer.from_str(json.dumps(spec | {"added_tokens": []}))
    added = {token["content"]: token["id"] for token in spec["added_tokens"]}
    tag_ids = {text: added[text] for text in (*tags(user_tools), BOXED) if text in added}
    bytes_V = token_bytes(spec["model"]["vocab"], added, vocab_size)
    eos_ids = stop_ids(folder, tokenizer, known=len(bytes_V))
    if protocol.turns and not protocol.stops:
        ends = [bytes_V[i].decode() for i in eos_ids]
        protocol = with_turns(
            protocol, tokenizer, exact, ends=ends, arguments=template_arguments, key=key
        )
    pad = tokenizer.pad_token_id
    return Tokens(
        tokenizer=tokenizer,
        bytes_V=bytes_V,
        eos_ids=eos_ids,
        pad_id=pad if isinstance(pad, int) else eos_ids[0],
        fingerprint=hashlib.sha256(path.read_bytes()).hexdigest(),
        user_tools=user_tools,
        protocol=protocol,
        template_arguments=template_arguments,
        _exact=exact,
        _plain=plain,
        _tag_ids=tag_ids,
        _at_tags=_splitter(tag_ids),
        _key=key,
    )

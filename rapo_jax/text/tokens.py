"""Text and tokens: building a tokenizer, exact bytes of every token, and where a step ends.

Byte-level tokenizers only (Qwen2, Qwen3, Llama 3, and what `build_tokenizer` makes): there each
token is a fixed run of bytes, so decoding is a join and a step's end is a walk of an automaton.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from rapo_jax.text.protocol import STOPS, neutralise, tags
from rapo_jax.text.token_bytes import token_bytes

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
    merges go through; a small model is better off without. The tool tags, of `own` tools too, and
    `\\boxed{` are one token each, so are the chat tokens; `<|end|>` is eos. The same corpus gives
    the same files.
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
    (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=2) + "\n")


@dataclass(frozen=True, eq=False)
class Tokens:
    """A tokenizer as the rest of the package needs it.

    `bytes_V[i]` is the exact bytes of token i, empty for ids without a token; `eos_ids` all end a
    response; `fingerprint` is the sha256 of tokenizer.json; `own` are the tags of own tools.
    """

    tokenizer: Any = field(repr=False)
    bytes_V: list[bytes] = field(repr=False)
    eos_ids: tuple[int, ...]
    pad_id: int
    fingerprint: str
    user_tools: tuple[str, ...]
    _exact: Any = field(repr=False)
    """tokenizer.json itself: transformers rebuilds some, every Qwen2 one with Qwen's own rules."""
    _plain: Any = field(repr=False)
    """The same without added tokens."""
    _tag_ids: dict[str, int] = field(repr=False)
    _at_tags: re.Pattern[str] = field(repr=False)

    def decode(self, ids: Iterable[int]) -> str:
        """The exact text of a token sequence, chat tokens included; broken UTF-8 shows as '�'."""
        ids = ids.tolist() if isinstance(ids, np.ndarray) else ids
        table = self.bytes_V
        return b"".join([table[i] for i in ids]).decode("utf-8", "replace")

    def encode(self, text: str) -> list[int]:
        """Foreign text: no added token (chat token, tool tag) can come out, whatever it says."""
        text = text.encode("utf-8", "replace").decode("utf-8")
        return self._plain.encode(text, add_special_tokens=False).ids

    def encode_protocol(self, text: str) -> list[int]:
        """Text that we render ourselves: tool tags become their own tokens where there are such.

        Chat tokens still cannot come out. Foreign text inside must have been neutralised, as
        `protocol.render_result` does.
        """
        ids: list[int] = []
        # Tags that are no token of their own stay in the text: BPE merges them with neighbours, as
        # it did in whatever the model has read.
        for piece in self._at_tags.split(text) if self._tag_ids else (text,):
            tag = self._tag_ids.get(piece)
            if tag is not None:
                ids.append(tag)
            elif piece:
                ids.extend(self.encode(piece))
        return ids

    def prompt_ids(self, system: str, question: str) -> list[int]:
        """The chat-templated prompt up to the assistant's turn; the question is neutralised.

        An empty `system` leaves the system turn to the template.
        """
        messages = [{"role": "system", "content": system}] if system else []
        messages.append({"role": "user", "content": neutralise(question, self.user_tools)})
        text = self.tokenizer.apply_chat_template(
            messages, tokenize=False, add_generation_prompt=True
        )
        return self._exact.encode(text, add_special_tokens=False).ids


def load_tokens(
    folder: str | Path, *, vocab_size: int = 0, user_tools: tuple[str, ...] = ()
) -> Tokens:
    """Loads a Hugging Face tokenizer folder; `bytes_V` is padded to a model's `vocab_size`.

    `own` are the tags of own tools, which the protocol has beside its `TAG_NAMES`.

    Raises:
        ValueError: there is no tokenizer of a kind that works here, no chat template or no id that
        ends a response.
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
    content = path.read_bytes()
    try:
        spec = json.loads(content)
    except ValueError as error:
        raise ValueError(f"{path}: not JSON ({error})") from None
    if "ByteLevel" not in json.dumps([spec.get("pre_tokenizer"), spec.get("decoder")]):
        raise ValueError(f"{key}: only byte-level BPE (Qwen, Llama 3) gives exact bytes")
    # Whatever its class is: only its template and the names of its special tokens are used, and
    # AutoTokenizer would import every kind of model there is.
    tokenizer = PreTrainedTokenizerFast.from_pretrained(str(folder))
    if not tokenizer.chat_template:
        raise ValueError(
            f"{key}: it has no chat template; use an instruction-tuned model's tokenizer, or put a "
            "chat_template.jinja into the folder"
        )
    spec |= dict.fromkeys(("post_processor", "truncation", "padding"))
    exact = Tokenizer.from_str(json.dumps(spec))
    plain = Tokenizer.from_str(json.dumps(spec | {"added_tokens": []}))
    added = {token["content"]: token["id"] for token in spec["added_tokens"]}
    tag_ids = {text: added[text] for text in (*tags(user_tools), BOXED) if text in added}
    bytes_V = token_bytes(spec["model"]["vocab"], added, vocab_size)
    eos, pad = (
        None if token is None else exact.token_to_id(token)
        for token in (tokenizer.eos_token, tokenizer.pad_token)
    )
    eos_ids = _eos_ids(Path(folder), eos, known=len(bytes_V))
    return Tokens(
        tokenizer=tokenizer,
        bytes_V=bytes_V,
        eos_ids=eos_ids,
        pad_id=eos_ids[0] if pad is None else pad,
        fingerprint=hashlib.sha256(content).hexdigest(),
        user_tools=user_tools,
        _exact=exact,
        _plain=plain,
        _tag_ids=tag_ids,
        _at_tags=_splitter(tag_ids),
    )


def _eos_ids(folder: Path, tokenizer_eos: int | None, *, known: int) -> tuple[int, ...]:
    """The tokenizer's own, then those of generation_config.json, or without one of config.json."""
    found = [] if tokenizer_eos is None else [tokenizer_eos]
    for name in ("generation_config.json", "config.json"):
        if (
            folder / name
        ).is_file():  # chat models may list several, of which the tokenizer has one
            ids = json.loads((folder / name).read_text()).get("eos_token_id")
            ids = ids if isinstance(ids, list) else [] if ids is None else [ids]
            for i in ids:
                if type(i) is not int or not 0 <= i < known:
                    raise ValueError(
                        f"{folder / name}: eos_token_id={i!r}: expected an id of the tokenizer, "
                        f"0 … {known - 1}"
                    )
            found += ids
            break
    if not found:
        raise ValueError(f"tokenizer.folder={str(folder)!r}: no eos_token is named in its files")
    return tuple(dict.fromkeys(found))


class Automaton(NamedTuple):
    """Reads a step token by token: `state = next_state_KV[state, token]`, starting from state 0.

    A state >= `first_accept` says that stop number `state - first_accept` has been closed, in the
    middle of a token or at its end; such states keep themselves.
    """

    next_state_KV: np.ndarray
    first_accept: int


def boundary_automaton(bytes_V: Sequence[bytes], stops: Sequence[str] = STOPS) -> Automaton:
    """The byte-level automaton of `stops` compiled into a token table, int16 [K, V].

    Where a token closes several stops, the first one counts.
    """
    step_KB, first_accept = _byte_automaton([stop.encode() for stop in stops])
    length_V = np.array([len(token) for token in bytes_V], np.int64)
    byte_N = np.frombuffer(b"".join(bytes_V), np.uint8)
    start_V = np.concatenate([[0], np.cumsum(length_V)[:-1]])
    by_length_V = np.argsort(-length_V, kind="stable")
    states = np.arange(len(step_KB), dtype=np.int16)
    state_VK = np.tile(states, (len(bytes_V), 1))
    for position in range(int(length_V.max(initial=0))):
        # Longest first: the tokens that still have a byte here are a prefix of the order.
        count = int(np.searchsorted(-length_V[by_length_V], -position))
        rows = by_length_V[:count]
        byte = byte_N[start_V[rows] + position]
        state_VK[rows] = step_KB[state_VK[rows], byte[:, None]]
    return Automaton(np.ascontiguousarray(state_VK.T), first_accept)


def _byte_automaton(stops: Sequence[bytes]) -> tuple[np.ndarray, int]:
    """Aho-Corasick over bytes: a state is the longest suffix read that begins a stop."""
    prefixes = sorted({stop[:n] for stop in stops for n in range(len(stop))}, key=len)
    number = {prefix: i for i, prefix in enumerate(prefixes)}
    first_accept = len(prefixes)
    step_KB = np.tile(np.arange(first_accept + len(stops), dtype=np.int16)[:, None], (1, 256))
    step_KB[:first_accept] = number[b""]  # where a byte of no stop leads
    for prefix, i in number.items():
        for byte in set(b"".join(stops)):
            read = prefix + bytes([byte])
            closed = [k for k, stop in enumerate(stops) if read.endswith(stop)]
            suffix = next(read[n:] for n in range(len(read) + 1) if read[n:] in number)
            step_KB[i, byte] = first_accept + closed[0] if closed else number[suffix]
    return step_KB, first_accept

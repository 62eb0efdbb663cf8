"""The exact bytes of every token of a byte-level tokenizer."""

from __future__ import annotations


def token_bytes(
    vocab: dict[str, int] | list[list], added: dict[str, int], vocab_size: int
) -> list[bytes]:
    """The bytes of each token id, from a byte-level `vocab` and the `added` tokens (text -> id).

    The list has at least `vocab_size` entries; ids without a token have no bytes.
    """
    if isinstance(vocab, list):  # a Unigram model: [token, score] in order
        vocab = {text: i for i, (text, _) in enumerate(vocab)}
    byte_of = _byte_alphabet()
    bytes_V = [b""] * max(vocab_size, 1 + max([*vocab.values(), *added.values()], default=0))
    for text, i in vocab.items():
        try:
            bytes_V[i] = bytes([byte_of[letter] for letter in text])
        except KeyError:  # a control token kept inside the vocabulary
            bytes_V[i] = text.encode()
    for text, i in added.items():
        bytes_V[i] = text.encode()
    return bytes_V


def _byte_alphabet() -> dict[str, int]:
    """Letter of a byte-level vocabulary -> byte: GPT-2's table of printable letters, inverted."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    hidden = [byte for byte in range(256) if byte not in set(printable)]
    return {chr(b): b for b in printable} | {chr(256 + i): b for i, b in enumerate(hidden)}

"""A deterministic text encoder without weights: hashed word n-grams with IDF.

Needs no download and no accelerator. Every number follows from the fitted texts and a stable hash:
the same texts give the same encoder on any machine and in any process.
"""

from __future__ import annotations

import functools
import hashlib
import json
import re
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

SCHEME = "ngram-1"
"""Part of the identity: a change of tokens, hashes or weights below gets another name."""

IDF_SLOTS = 2**16
_TOKEN = re.compile(r"</?\w+>|\w+|\S")
_END = 0x0E4D
_ROW_BITS = 16
_CHUNK = 512
_CACHED_CHARS = 128
_MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)


@dataclass(frozen=True, eq=False)
class NgramEncoder:
    """Texts -> `[n, width]` float32 rows of length 1, by signed hashing of word n-grams.

    Tokens are tags, words, numbers and punctuation, lower-cased, and an end mark. The k-th
    occurrence of an n-gram in a text is a separate feature: an n-gram adds to the similarity of two
    texts IDF^2 * log(1 + smaller count) / n^2. So the number of steps shows in rare features ("a
    third <search>") and not in the length of a vector, which normalisation removes; and long
    n-grams, which are many and accidental, weigh less than words.
    Features that no fitted text has weigh 0: they can match no key. A text without any known
    feature is the zero vector, the empty text perhaps too: equally far from all keys, never NaN.
    A text's row depends on that text alone, to the last bit.
    """

    width: int
    idf: np.ndarray
    orders: tuple[int, ...]

    @classmethod
    def fit(cls, texts: Sequence[str], *, width: int, orders: Sequence[int]) -> NgramEncoder:
        """Fits the IDF weights on `texts`: log((1 + n) / (1 + df)) + 1, 0 where df = 0."""
        if width < 1:
            raise ValueError(f"encoder.width={width}: an embedding needs at least 1 number")
        if not orders or min(orders) < 1:
            raise ValueError(
                f"encoder.orders={tuple(orders)}: give n-gram lengths, such as 1, 2, 3"
            )
        if not texts:
            raise ValueError("encoder: no texts to fit on; build the buffer's items first")
        texts_with = np.zeros(IDF_SLOTS, np.int64)
        for chunk in _chunks(texts):
            row, feature, _ = _features(chunk, tuple(orders))
            slot = _idf_slot(feature).astype(np.int64)
            once = np.unique(row * IDF_SLOTS + slot)
            texts_with += np.bincount(once % IDF_SLOTS, minlength=IDF_SLOTS)
        idf = np.log((1 + len(texts)) / (1 + texts_with)) + 1
        idf = np.where(texts_with > 0, idf, 0).astype(np.float32)
        return cls(width=width, idf=idf, orders=tuple(orders))

    def __call__(self, texts: Sequence[str]) -> np.ndarray:
        """Embeds texts: `[n, width]` float32."""
        if len(texts) == 0:
            return np.zeros((0, self.width), np.float32)
        return np.concatenate([self._encode(chunk) for chunk in _chunks(texts)])

    def _encode(self, texts: Sequence[str]) -> np.ndarray:
        row, feature, weight = _features(texts, self.orders)
        weight = weight * self.idf[_idf_slot(feature)]
        slot = (feature >> np.uint64(17)) % np.uint64(self.width)
        sign = 1.0 - 2.0 * ((feature >> np.uint64(16)) & np.uint64(1))
        flat = np.bincount(
            row * self.width + slot.astype(np.int64),
            weights=sign * weight,
            minlength=len(texts) * self.width,
        )
        vector = flat.reshape(len(texts), self.width)
        norm = np.sqrt((vector * vector).sum(axis=1, keepdims=True))
        return (vector / np.where(norm > 0, norm, 1)).astype(np.float32)

    @property
    def identity(self) -> str:
        """Digest of everything except the text that an embedding depends on."""
        head = f"{SCHEME} width={self.width} orders={self.orders} ".encode()
        return "ngram:" + hashlib.sha256(head + self.idf.tobytes()).hexdigest()[:32]

    def save(self, folder: str | Path) -> None:
        """Writes `ngram.json` and `ngram.npz` into an existing folder."""
        folder = Path(folder)
        np.savez_compressed(folder / "ngram.npz", idf=self.idf)
        metadata = {"width": self.width, "orders": self.orders, "identity": self.identity}
        (folder / "ngram.json").write_text(json.dumps(metadata), encoding="utf-8")

    @classmethod
    def load(cls, folder: str | Path) -> NgramEncoder:
        """Reads a saved encoder; raises ValueError for a damaged folder or another scheme."""
        folder = Path(folder)
        try:
            metadata = json.loads((folder / "ngram.json").read_text(encoding="utf-8"))
            with np.load(folder / "ngram.npz", allow_pickle=False) as arrays:
                idf = np.asarray(arrays["idf"], np.float32)
            encoder = cls(width=int(metadata["width"]), idf=idf, orders=tuple(metadata["orders"]))
            stored = metadata["identity"]
        except Exception as error:  # of zip or JSON, or a missing key
            raise ValueError(f"encoder {folder}: unreadable ({error!r}); build it again") from error
        if encoder.identity != stored:
            raise ValueError(f"encoder {folder}: identity {stored} expected; build it again")
        return encoder


def _chunks(texts: Sequence[str]) -> Iterator[Sequence[str]]:
    for start in range(0, len(texts), _CHUNK):
        yield texts[start : start + _CHUNK]


def _token_hash(token: str) -> int:
    """Stable 64 bits of a token (Python's own hash changes with every process)."""
    data = token.encode("utf-8", "surrogatepass")
    return zlib.crc32(data) | zlib.crc32(data, 0x5EED) << 32


@functools.lru_cache(maxsize=2**17)
def _chunk_hashes(chunk: str) -> tuple[int, ...]:
    """Hashes of the tokens of a text without white space; most texts repeat."""
    return tuple(map(_token_hash, _TOKEN.findall(chunk)))


def _append_hashes(text: str, hashes: list[int]) -> None:
    for chunk in text.lower().split():
        cached = len(chunk) <= _CACHED_CHARS  # endless words must not fill the memory
        hashes += _chunk_hashes(chunk) if cached else _chunk_hashes.__wrapped__(chunk)
    hashes.append(_END)


def _mix(value: np.ndarray) -> np.ndarray:
    """Finaliser of splitmix64: every bit of the result depends on every bit of the value."""
    value = (value ^ (value >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    value = (value ^ (value >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return value ^ (value >> np.uint64(31))


def _idf_slot(feature: np.ndarray) -> np.ndarray:
    return feature & np.uint64(IDF_SLOTS - 1)


def _features(
    texts: Sequence[str], orders: tuple[int, ...]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(row, feature, weight) of every n-gram occurrence, by order, row and n-gram.

    The sequence within a row depends on that row alone, so sums over it do too, to the last bit.
    """
    hashes: list[int] = []
    ends = np.zeros(len(texts) + 1, np.int64)
    for position, text in enumerate(texts, start=1):
        _append_hashes(text, hashes)
        ends[position] = len(hashes)
    token = np.array(hashes, np.uint64)
    row = np.repeat(np.arange(len(texts), dtype=np.uint64), np.diff(ends))
    parts = [_order_features(token, row, order) for order in orders]
    rows, features, weights = (np.concatenate(part) for part in zip(*parts, strict=True))
    return rows, features, weights


def _order_features(
    token: np.ndarray, row: np.ndarray, order: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    count = max(0, len(token) - order + 1)
    gram = np.full(count, order, np.uint64)
    for offset in range(order):
        gram = gram * _MULTIPLIER + token[offset : offset + count]
    within = row[:count] == row[len(row) - count :]
    # One sort of row and hash in one number: far cheaper than np.unique over pairs.
    packed = row[:count] << np.uint64(64 - _ROW_BITS) | _mix(gram) >> np.uint64(_ROW_BITS)
    packed = np.sort(packed[within])
    place = np.arange(len(packed))
    first = np.ones(len(packed), bool)
    first[1:] = packed[1:] != packed[:-1]
    nth = place - np.maximum.accumulate(np.where(first, place, 0)) + 1
    rows = (packed >> np.uint64(64 - _ROW_BITS)).astype(np.int64)
    gram = packed & np.uint64((1 << (64 - _ROW_BITS)) - 1)
    feature = _mix(gram + nth.astype(np.uint64) * _MULTIPLIER)
    return rows, feature, np.sqrt(np.log1p(1 / nth)) / order

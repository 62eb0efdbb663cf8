"""The n-gram encoder: deterministic, sensitive to steps and order, never NaN."""

from __future__ import annotations

import itertools
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rapo_jax.search.ngram import NgramEncoder

RELATIONS = ("mentor", "rival", "cousin", "patron")
WORDS = ("zemlo", "trapi", "kodu", "fenga", "libor", "shanim")


def made_up_key(word: str, relations: tuple[str, ...], extra: str = "") -> str:
    steps = "".join(
        f"<think>{r}</think><search># {r}</search><result># {r} # ; # cousin #{extra}</result>"
        for r in relations
    )
    return f"who is the {word} of # ?\n{steps}"


KEYS = [
    made_up_key(word, tuple(RELATIONS[(shift + i * i) % 4] for i in range(steps)))
    for shift, word in enumerate(WORDS)
    for steps in range(5)
]
ENCODER = NgramEncoder.fit(KEYS, width=256, orders=(1, 2))


def nearest(queries: list[str]) -> list[int]:
    return np.argmax(ENCODER(queries) @ ENCODER(KEYS).T, axis=1).tolist()


def test_rows_have_length_1_and_are_float32():
    vector = ENCODER(KEYS)
    assert vector.shape == (len(KEYS), 256) and vector.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(vector, axis=1), 1, atol=1e-6)


@given(st.lists(st.one_of(st.sampled_from(KEYS), st.text(max_size=60)), max_size=6))
def test_an_embedding_depends_on_its_text_alone_to_the_last_bit(texts):
    together = ENCODER(texts)
    assert together.shape == (len(texts), 256)
    assert np.isfinite(together).all()
    for text, row in zip(texts, together, strict=True):
        np.testing.assert_array_equal(ENCODER([text])[0], row)


def test_a_batch_longer_than_one_chunk_is_the_same_as_its_parts():
    texts = [f"{key} {i % 7}" for i, key in enumerate(KEYS * 40)]
    np.testing.assert_array_equal(ENCODER(texts)[1000:1010], ENCODER(texts[1000:1010]))


def test_the_same_question_word_and_the_same_number_of_steps_are_nearest():
    queries = [
        made_up_key(
            word, tuple(RELATIONS[(shift + i * i) % 4] for i in range(steps)), " ; # rival #"
        )
        for shift, word in enumerate(WORDS)
        for steps in range(5)
    ]
    assert nearest(queries) == list(range(len(KEYS)))


def test_the_number_of_steps_counts_even_when_every_step_is_the_same():
    keys = [made_up_key("zemlo", ("mentor",) * steps) for steps in range(5)]
    encoder = NgramEncoder.fit(keys, width=512, orders=(1, 2))
    similarity = encoder(keys) @ encoder(keys).T
    for a, b in itertools.pairwise(range(5)):
        assert similarity[a, b] < 0.97
    for steps in range(1, 4):  # one step more or less is nearer than two
        assert similarity[steps - 1, steps] > similarity[steps - 1, steps + 1]


def test_bigrams_distinguish_the_order_of_steps_and_words_alone_do_not():
    one = made_up_key("zemlo", ("mentor", "rival"))
    other = made_up_key("zemlo", ("rival", "mentor"))
    words = NgramEncoder.fit([one, other], width=256, orders=(1,))
    bigrams = NgramEncoder.fit([one, other], width=256, orders=(1, 2, 3))
    assert words([one])[0] @ words([other])[0] > 1 - 1e-6
    assert bigrams([one])[0] @ bigrams([other])[0] < 1 - 1e-3


def test_rare_words_outweigh_common_ones():
    texts = ["the cat of #"] * 50 + ["the dog of #"]
    encoder = NgramEncoder.fit(texts, width=512, orders=(1,))
    query = encoder(["dog"])[0]
    assert query @ encoder(["the dog of #"])[0] > query @ encoder(["the cat of #"])[0] + 0.3


def test_an_empty_or_unknown_text_is_zero_or_a_unit_vector_and_never_nan():
    encoder = NgramEncoder.fit(["aa bb"], width=16, orders=(1, 2))
    for text in ("", " ", "never seen", "\x00", "\ud800"):
        norm = np.linalg.norm(encoder([text])[0])
        assert norm == 0 or abs(norm - 1) < 1e-6
    bigrams = NgramEncoder.fit(["aa bb"], width=16, orders=(2,))
    np.testing.assert_array_equal(bigrams([""]), np.zeros((1, 16), np.float32))


def test_words_that_no_fitted_text_has_add_nothing():
    encoder = NgramEncoder.fit(["aa bb"], width=64, orders=(1,))
    np.testing.assert_array_equal(encoder(["aa never seen"]), encoder(["aa"]))
    pairs = NgramEncoder.fit(["aa bb"], width=64, orders=(2,))
    np.testing.assert_array_equal(pairs(["bb aa"]), np.zeros((1, 64), np.float32))


def test_no_texts_give_no_rows():
    assert ENCODER([]).shape == (0, 256)


def test_another_process_with_another_hash_seed_gives_the_same_embedding(tmp_path):
    ENCODER.save(tmp_path)
    program = (
        "import sys; from rapo_jax.search.ngram import NgramEncoder; "
        "sys.stdout.buffer.write(NgramEncoder.load(sys.argv[1])([sys.argv[2]]).tobytes())"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path), KEYS[3]],
        env={"PYTHONHASHSEED": "7", "PYTHONPATH": ":".join(sys.path)},
        capture_output=True,
        check=True,
    )
    assert done.stdout == ENCODER([KEYS[3]]).tobytes()


def test_save_and_load_keep_the_identity_and_every_embedding(tmp_path):
    ENCODER.save(tmp_path)
    loaded = NgramEncoder.load(tmp_path)
    assert loaded.identity == ENCODER.identity
    np.testing.assert_array_equal(loaded(KEYS), ENCODER(KEYS))


def test_encoders_of_other_widths_orders_or_texts_have_other_identities():
    encoders = [
        NgramEncoder.fit(texts, width=width, orders=orders)
        for texts in (KEYS, KEYS[:-1])
        for width in (64, 128)
        for orders in ((1,), (1, 2))
    ]
    assert len({encoder.identity for encoder in encoders}) == len(encoders)


def test_a_damaged_encoder_is_refused(tmp_path):
    ENCODER.save(tmp_path)
    (tmp_path / "ngram.npz").write_bytes((tmp_path / "ngram.npz").read_bytes()[:50])
    with pytest.raises(ValueError, match="build it again"):
        NgramEncoder.load(tmp_path)


@pytest.mark.parametrize("arguments", [{"width": 0, "orders": (1,)}, {"width": 8, "orders": ()}])
def test_useless_sizes_are_refused_by_name(arguments):
    with pytest.raises(ValueError, match="encoder\\.(width|orders)="):
        NgramEncoder.fit(["a"], **arguments)


def test_fitting_on_no_texts_is_refused():
    with pytest.raises(ValueError, match="no texts"):
        NgramEncoder.fit([], width=8, orders=(1,))

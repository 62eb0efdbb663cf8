"""MiniLM on the host: the keys of a reference in numpy, and damaged folders."""

from __future__ import annotations

import numpy as np
import pytest

from rapo_jax.model.encoder import load_encoder, tokenize_texts
from rapo_jax.search.index.minilm import MiniLm
from tests.model.test_encoder import TEXTS, numpy_key, random_tensors, write_encoder


@pytest.mark.parametrize("tokens", [16, 5])
def test_minilm_on_the_host_gives_the_keys_of_the_device_for_cut_texts(tmp_path, tokens):
    folder = write_encoder(tmp_path / "bert")
    _, _, tokenizer = load_encoder(folder)
    token_BX, length_B = tokenize_texts(tokenizer, TEXTS, width=tokens)
    tensors = random_tensors()
    wanted = [numpy_key(tensors, row[:n]) for row, n in zip(token_BX, length_B, strict=True)]
    found = MiniLm(folder, tokens=tokens)(TEXTS)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, wanted, atol=2e-6)
    assert MiniLm(folder, tokens=tokens)([]).shape == (0, found.shape[1])


def test_a_damaged_encoder_is_refused(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ValueError, match="no encoder .*build the index again"):
        MiniLm(tmp_path, tokens=8)

"""Loading tensors shard by shard, and refusing those that do not fit."""

from __future__ import annotations

import weakref

import jax
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from rapo_jax.model.hf import check_tensors, load_params, place_shards, places
from rapo_jax.model.hf_config import settings_from_hf
from rapo_jax.model.hf_files import Tensors
from rapo_jax.model.sharding import MESH_AXES, make_mesh, replicated
from tests.model.checkpoints import BASE, edit_tensors, load, make_model, save_model


class Witness(Tensors):
    """Records which part of which tensor is read."""

    def __init__(self, folder):
        super().__init__(folder)
        self.reads = []

    def read(self, name, index):
        self.reads.append((name, tuple((part.start, part.stop) for part in index)))
        return super().read(name, index)


SPECS = {
    "kernel": (None, "fsdp", "tensor"),
    "embed_VD": ("tensor", "fsdp"),
    "bias": (None, "tensor"),
}


def test_each_device_gets_its_shard_and_nothing_is_read_whole_or_twice(tmp_path):
    save_model(make_model("qwen2_tied", vocab_size=96), tmp_path)
    settings = settings_from_hf(tmp_path, base=BASE)
    devices = np.array(jax.devices()[:8]).reshape(1, 4, 2)
    mesh = jax.sharding.Mesh(devices, MESH_AXES)

    def spec(path, _):
        return NamedSharding(mesh, PartitionSpec(*SPECS.get(path[-1].key, ())))

    shardings = jax.tree_util.tree_map_with_path(spec, places(settings))
    witness = Witness(tmp_path)
    params = load_params(witness, settings, shardings=shardings, dtype="float32")
    assert len(set(witness.reads)) == len(witness.reads)
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        parts = 8 if path[-1].key in ("kernel", "embed_VD") else 2 if path[-1].key == "bias" else 1
        assert all(x.data.size == leaf.size // parts for x in leaf.addressable_shards)
    read = {}
    for name, spans in witness.reads:
        size = int(np.prod([stop - start for start, stop in spans]))
        parts = 1 if "norm" in name else 2 if "bias" in name else 8
        assert size * parts == np.prod(witness.headers[name].shape), name
        read[name] = read.get(name, 0) + size
    assert read == {name: np.prod(witness.headers[name].shape) for name in witness.headers}
    jax.tree.map(np.testing.assert_array_equal, params, load(tmp_path)[1])


def test_a_replicated_tensor_is_read_once_for_all_devices(tmp_path):
    save_model(make_model("llama3"), tmp_path)
    settings = settings_from_hf(tmp_path, base=BASE)
    mesh = make_mesh()
    shardings = jax.tree.map(lambda _: replicated(mesh), places(settings))
    witness = Witness(tmp_path)
    params = load_params(witness, settings, shardings=shardings, dtype="float32")
    assert sorted(name for name, _ in witness.reads) == sorted(witness.headers)
    for leaf in jax.tree.leaves(params):
        assert len(leaf.addressable_shards) == len(jax.devices()) == 8


def test_a_shard_is_freed_before_the_next_is_read():
    mesh = make_mesh()
    alive = []

    class Piece(np.ndarray):
        pass

    def read(index):
        assert not [1 for reference in alive if reference() is not None]
        # On CPU a device may keep an array without a copy, so what it gets is a view of a base.
        piece = np.zeros([part.stop - part.start for part in index], np.float32).view(Piece)
        alive.append(weakref.ref(piece))
        return piece

    found = place_shards((16, 3), NamedSharding(mesh, PartitionSpec("data")), read)
    assert len(alive) == 8 and found.shape == (16, 3)


BAD = {
    "missing": (
        {"model__layers__1__mlp__up_proj__weight": None},
        r"tensor model\.layers\.1\.mlp\.up_proj\.weight is missing",
    ),
    "missing bias": (
        {"model__layers__0__self_attn__q_proj__bias": None},
        r"tensor model\.layers\.0\.self_attn\.q_proj\.bias is missing",
    ),
    "extra": (
        {"model__layers__0__mlp__up_proj__bias": np.zeros(48, np.float32)},
        r"tensor model\.layers\.0\.mlp\.up_proj\.bias belongs to no parameter",
    ),
    "a layer too many": (
        {"model__layers__2__input_layernorm__weight": np.ones(32, np.float32)},
        r"tensor model\.layers\.2\.input_layernorm\.weight belongs to no parameter",
    ),
    "almost a buffer": (
        {"model__layers__0__self_attn__rotary_emb__inv_freq__weight": np.ones(4, np.float32)},
        r"rotary_emb\.inv_freq\.weight belongs to no parameter",
    ),
    "transposed": (
        {"model__layers__0__mlp__down_proj__weight": np.zeros((48, 32), np.float32)},
        r"down_proj\.weight has shape \(48, 32\), but config\.json asks for \(32, 48\)",
    ),
    "another vocabulary": (
        {"model__embed_tokens__weight": np.zeros((96, 32), np.float32)},
        r"model\.embed_tokens\.weight has shape \(96, 32\), but config\.json asks for \(97, 32\)",
    ),
    "quantised": (
        {"model__layers__0__mlp__down_proj__weight": np.zeros((32, 48), np.int8)},
        r"down_proj\.weight is of type I8; quantised weights are not supported",
    ),
    "NaN": (
        {"model__layers__1__post_attention_layernorm__weight": np.full(32, np.nan, np.float32)},
        r"tensor model\.layers\.1\.post_attention_layernorm\.weight holds NaN",
    ),
    "infinite": (
        {"model__norm__weight": np.full(32, np.inf, np.float16)},
        r"tensor model\.norm\.weight holds NaN or infinite",
    ),
    "another head": (
        {"lm_head__weight": np.zeros((97, 32), np.float32)},
        r"tensor lm_head\.weight differs from model\.embed_tokens\.weight",
    ),
    "a head of another shape": (
        {"lm_head__weight": np.zeros((5, 32), np.float32)},
        r"tensor lm_head\.weight differs from model\.embed_tokens\.weight",
    ),
}


@pytest.mark.parametrize(("changes", "message"), BAD.values(), ids=BAD)
def test_a_tensor_that_does_not_fit_is_refused_by_its_name(changes, message, tmp_path):
    save_model(make_model("qwen2_tied"), tmp_path)
    edit_tensors(tmp_path, **changes)
    with pytest.raises(ValueError, match=message):
        load(tmp_path)


def test_a_tied_head_that_equals_the_embedding_and_old_buffers_are_left_out(tmp_path):
    model = make_model("qwen2_tied")
    save_model(model, tmp_path)
    embedding = model.model.embed_tokens.weight.detach().numpy()
    inv_freq = np.ones(4, np.float32)
    edit_tensors(
        tmp_path,
        lm_head__weight=embedding,
        model__rotary_emb__inv_freq=inv_freq,
        model__layers__1__self_attn__rotary_emb__inv_freq=inv_freq,
    )
    lines = check_tensors(Tensors(tmp_path), settings_from_hf(tmp_path, base=BASE))
    assert lines == ["lm_head.weight equals the tied embedding and is left out"]
    np.testing.assert_array_equal(load(tmp_path)[1]["embed_VD"], embedding)

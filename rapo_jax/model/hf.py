"""Reads the weights of a Hugging Face folder as parameters, and writes parameters as such a folder.

Every tensor's name and shape is checked before any value is read. Then each device's shard of a
parameter is read from the files, put onto the device and freed, so that the host never holds the
whole model.
"""

from __future__ import annotations

import collections
import dataclasses
import math
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Sharding
from jax.tree_util import KeyPath

from rapo_jax.config import ModelSettings
from rapo_jax.model.hf_files import FLOATS, Index, Tensors, write_tensors
from rapo_jax.model.transformer import init_params
from rapo_jax.types import Params

EMBEDDING, FINAL_NORM, HEAD = "model.embed_tokens.weight", "model.norm.weight", "lm_head.weight"
BLOCK_TENSORS = {
    "attention_norm": "input_layernorm",
    "query": "self_attn.q_proj",
    "key": "self_attn.k_proj",
    "value": "self_attn.v_proj",
    "query_norm": "self_attn.q_norm",
    "key_norm": "self_attn.k_norm",
    "output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "gate": "mlp.gate_proj",
    "up": "mlp.up_proj",
    "down": "mlp.down_proj",
}
BUFFER = re.compile(r"model\.(layers\.\d+\.self_attn\.)?rotary_emb\.inv_freq")
"""Tensors that old versions of transformers wrote and that follow from config.json."""
ORDER = {EMBEDDING: 0, FINAL_NORM: 2, HEAD: 3}
"""Order of tensors in the files; those of blocks have 1."""

COMPARED_ROWS = 4096
"""Rows of two embeddings that are compared at a time."""
TRANSPOSED_ROWS = 64
"""Rows of a matrix that are transposed at a time: few enough for the processor's cache."""


@dataclasses.dataclass(frozen=True)
class Place:
    """Where a parameter is stored in a folder: in one tensor, or in one for each layer."""

    shape: tuple[int, ...]
    names: tuple[str, ...]
    stacked: bool
    transposed: bool
    """PyTorch stores a linear map as [out, in], Flax as [in, out]."""

    @property
    def tensor_shape(self) -> tuple[int, ...]:
        shape = self.shape[1:] if self.stacked else self.shape
        return shape[::-1] if self.transposed else shape


def places(settings: ModelSettings) -> Params:
    """A `Place` for every parameter, as a pytree like the parameters."""

    def place(path: KeyPath, leaf: jax.ShapeDtypeStruct) -> Place:
        top, *rest = (entry.key for entry in path)
        if top != "blocks":
            name = {"embed_VD": EMBEDDING, "norm": FINAL_NORM, "head_DV": HEAD}[top]
            return Place(leaf.shape, (name,), False, top == "head_DV")
        end = f"{BLOCK_TENSORS[rest[0]]}.{'bias' if rest[1] == 'bias' else 'weight'}"
        names = tuple(f"model.layers.{layer}.{end}" for layer in range(settings.layers))
        return Place(leaf.shape, names, True, rest[1] == "kernel")

    shapes = jax.eval_shape(lambda: init_params(settings, jax.random.key(0)))
    return jax.tree_util.tree_map_with_path(place, shapes)


def check_tensors(tensors: Tensors, settings: ModelSettings) -> list[str]:
    """Checks the tensors of a folder; returns a line for each one that loading leaves out.

    Raises:
        ValueError: a tensor is missing, left over, quantised or mis-shaped; names it.
    """
    where = tensors.folder
    wanted = {
        name: place.tensor_shape
        for place in jax.tree.leaves(places(settings))
        for name in place.names
    }
    for name, shape in wanted.items():
        header = tensors.headers.get(name)
        if header is None:
            raise ValueError(f"{where}: tensor {name} is missing, but config.json asks for it")
        if header.dtype not in FLOATS:
            raise ValueError(
                f"{where}: tensor {name} is of type {header.dtype}; quantised weights are "
                f"not supported, only {', '.join(FLOATS)}"
            )
        if header.shape != shape:
            raise ValueError(
                f"{where}: tensor {name} has shape {header.shape}, but config.json asks for {shape}"
            )
    left_out = []
    for name in tensors.headers:
        if name == HEAD and settings.tied:
            _refuse_other_head(tensors)
            left_out.append(f"{HEAD} equals the tied embedding and is left out")
        elif name not in wanted and not BUFFER.fullmatch(name):
            raise ValueError(
                f"{where}: tensor {name} belongs to no parameter of the model that config.json "
                "describes"
            )
    return left_out


def _refuse_other_head(tensors: Tensors) -> None:
    """If a tied model's folder has a head, it must equal the embedding."""
    shape = tensors.headers[EMBEDDING].shape
    same = tensors.headers[HEAD].shape == shape
    for start in range(0, shape[0] if same else 0, COMPARED_ROWS):
        rows = (slice(start, min(start + COMPARED_ROWS, shape[0])), slice(0, shape[1]))
        same = same and bool((tensors.read(HEAD, rows) == tensors.read(EMBEDDING, rows)).all())
    if not same:
        raise ValueError(
            f"{tensors.folder}: tensor {HEAD} differs from {EMBEDDING}, but config.json ties them; "
            "set tie_word_embeddings to false there"
        )


def load_params(
    tensors: Tensors, settings: ModelSettings, *, shardings: Params, dtype: jax.typing.DTypeLike
) -> Params:
    """Parameters of a checked folder, sharded as the pytree `shardings` says.

    Linear maps and embeddings are read in `dtype`, norms and biases in float32. The host holds one
    shard of one parameter at a time.

    Raises:
        ValueError: a tensor holds NaN or infinite values; names it.
    """

    def load(place: Place, sharding: Sharding) -> jax.Array:
        kind = jnp.dtype(dtype if len(place.tensor_shape) > 1 else jnp.float32)
        return place_shards(
            place.shape, sharding, lambda index: _read_shard(tensors, place, index, kind)
        )

    return jax.tree.map(load, places(settings), shardings)


def place_shards(
    shape: tuple[int, ...], sharding: Sharding, read: Callable[[Index], np.ndarray]
) -> jax.Array:
    """A global array; `read(index)` is called once for each distinct shard of this host.

    `jax.make_array_from_callback` does the same, but keeps all the shards of a host until the last
    has been read.
    """
    devices_of: dict[tuple[tuple[int, int], ...], list[jax.Device]] = {}
    for device, index in sharding.addressable_devices_indices_map(shape).items():
        at = tuple(part.indices(size)[:2] for part, size in zip(index or (), shape, strict=True))
        devices_of.setdefault(at, []).append(device)
    arrays: list[jax.Array] = []
    for at, devices in devices_of.items():
        shard = read(tuple(slice(start, stop) for start, stop in at))
        arrays += jax.block_until_ready([jax.device_put(shard, device) for device in devices])
        del shard  # freed before the next one is read
    return jax.make_array_from_single_device_arrays(shape, sharding, arrays)


def _read_shard(tensors: Tensors, place: Place, index: Index, dtype: np.dtype) -> np.ndarray:
    shard = np.empty([part.stop - part.start for part in index], dtype)
    if not place.stacked:
        _read_into(shard, tensors, place, place.names[0], index)
        return shard
    for number, layer in enumerate(range(index[0].start, index[0].stop)):
        _read_into(shard[number], tensors, place, place.names[layer], index[1:])
    return shard


def _read_into(out: np.ndarray, tensors: Tensors, place: Place, name: str, index: Index) -> None:
    if not place.transposed:
        out[...] = tensors.read(name, index)
        return
    tensor = tensors.read(name, index[::-1])
    for start in range(0, len(tensor), TRANSPOSED_ROWS):
        rows = slice(start, start + TRANSPOSED_ROWS)
        out[:, rows] = tensor[rows].astype(out.dtype).T


def save_weights(
    folder: Path | None,
    settings: ModelSettings,
    params: Params,
    *,
    dtype: jax.typing.DTypeLike,
    limit: int,
) -> None:
    """Writes the safetensors files of a Hugging Face folder, of at most `limit` bytes each.

    Arrays of several processes are gathered tensor by tensor: all processes call this together, and
    those that write nothing have no `folder`.

    Raises:
        ValueError: a parameter is NaN or infinite in `dtype`; names its tensor.
    """
    leaves = zip(jax.tree.leaves(places(settings)), jax.tree.leaves(params), strict=True)
    entries = [
        (name, layer if place.stacked else None, place, leaf)
        for place, leaf in leaves
        for layer, name in enumerate(place.names)
    ]
    entries.sort(key=lambda entry: (ORDER.get(entry[0], 1), entry[1] or 0))
    width = jnp.dtype(dtype).itemsize
    sizes = {name: math.prod(place.tensor_shape) * width for name, _, place, _ in entries}

    def values() -> Iterator[tuple[str, np.ndarray]]:
        for name, layer, place, leaf in entries:
            value = _gathered(leaf if layer is None else _layer(leaf, layer))
            value = np.ascontiguousarray(value.T if place.transposed else value, dtype)
            if not np.isfinite(value).all():
                raise ValueError(f"tensor {name} would hold NaN or infinite values; not exported")
            yield name, value

    if folder:
        write_tensors(folder, values(), sizes=sizes, limit=limit)
    else:
        collections.deque(values(), maxlen=0)


def _gathered(array: np.ndarray | jax.Array) -> np.ndarray:
    """The whole array on this host."""
    if isinstance(array, jax.Array) and not array.is_fully_addressable:
        return np.asarray(multihost_utils.process_allgather(array, tiled=True))
    return np.asarray(array)


def _layer(leaf: np.ndarray | jax.Array, layer: int) -> np.ndarray | jax.Array:
    """One layer of a stack; on devices by a traced index, so that one program serves all layers."""
    if isinstance(leaf, np.ndarray):
        return leaf[layer]
    return jax.lax.dynamic_index_in_dim(leaf, layer, keepdims=False)

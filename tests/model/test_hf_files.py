"""The safetensors files of a folder: reading, writing, and the errors of broken ones."""

from __future__ import annotations

import json

import numpy as np
import pytest
from safetensors.numpy import save_file

from rapo_jax.model.hf_files import INDEX_FILE, Tensors, write_tensors

LEFT = {"a": np.arange(6, dtype=np.float32).reshape(2, 3), "b": np.ones(2, np.float32)}
RIGHT = {"c": np.zeros(4, np.float16)}


@pytest.fixture
def folder(tmp_path):
    """Two files and their index."""
    save_file(LEFT, tmp_path / "model-1.safetensors")
    save_file(RIGHT, tmp_path / "model-2.safetensors")
    names = dict.fromkeys(LEFT, "model-1.safetensors") | dict.fromkeys(RIGHT, "model-2.safetensors")
    (tmp_path / INDEX_FILE).write_text(json.dumps({"weight_map": names}))
    return tmp_path


def test_tensors_of_all_files_are_found_by_name_with_shape_and_type(folder):
    tensors = Tensors(folder)
    assert sorted(tensors.headers) == ["a", "b", "c"]
    a, c = tensors.headers["a"], tensors.headers["c"]
    assert (a.shape, a.dtype, c.dtype) == ((2, 3), "F32", "F16")
    found = tensors.read("a", (slice(1, 2), slice(0, 2)))
    np.testing.assert_array_equal(found, LEFT["a"][1:2, :2])


def test_a_single_file_needs_no_index(tmp_path):
    save_file(LEFT, tmp_path / "model.safetensors")
    assert sorted(Tensors(tmp_path).headers) == ["a", "b"]


def test_a_folder_without_weights_is_refused_with_the_expected_file_names(tmp_path):
    (tmp_path / "pytorch_model.bin").write_bytes(b"x")
    with pytest.raises(ValueError, match=r"model\.folder=.*neither model\.safetensors nor model"):
        Tensors(tmp_path)


def test_a_file_that_the_index_names_and_that_is_missing_is_refused(folder):
    name = "x" * 300 + ".safetensors"  # longer than a file's name may be
    index = (folder / INDEX_FILE).read_text()
    (folder / INDEX_FILE).write_text(index.replace("model-1.safetensors", name))
    with pytest.raises(ValueError, match=f"{name}: missing, but"):
        Tensors(folder)
    (folder / INDEX_FILE).write_text(index)
    (folder / "model-2.safetensors").unlink()
    with pytest.raises(ValueError, match=r"model-2\.safetensors: missing, but .*index\.json names"):
        Tensors(folder)


ODD = (
    "",
    "[]",
    "{}",
    '{"weight_map": 3}',
    '{"weight_map": {"a": 3}}',
    "[" * 100_000 + "]" * 100_000,
)


@pytest.mark.parametrize("content", ODD, ids=range(len(ODD)))
def test_an_invalid_index_is_refused(folder, content):
    (folder / INDEX_FILE).write_text(content)
    with pytest.raises(
        ValueError, match=r"index\.json: (not an index of safetensors files|not JSON|expected)"
    ):
        Tensors(folder)


@pytest.mark.parametrize("name", ["../model-1.safetensors", "/etc/passwd", ".."])
def test_an_index_names_files_of_its_folder_alone(folder, name):
    inner = folder / "inner"
    inner.mkdir()
    (inner / INDEX_FILE).write_text(json.dumps({"weight_map": {"a": name}}))
    with pytest.raises(ValueError, match=r"index\.json: weight_map names .*outside its folder"):
        Tensors(inner)


@pytest.mark.parametrize("left", [0, 5, 60, -1])
def test_a_file_cut_short_by_a_broken_download_is_refused(folder, left):
    path = folder / "model-1.safetensors"
    path.write_bytes(path.read_bytes()[:left])
    with pytest.raises(ValueError, match=r"model-1\.safetensors: not a whole safetensors file"):
        Tensors(folder)


def test_a_tensor_in_two_files_is_refused(folder):
    save_file(RIGHT | {"b": LEFT["b"]}, folder / "model-2.safetensors")
    with pytest.raises(ValueError, match=r"model-2.safetensors: tensor b is in .*model-1"):
        Tensors(folder)


def test_only_the_part_that_is_read_must_be_finite(tmp_path):
    save_file({"a": np.float32([[0, 1], [np.nan, 2]])}, tmp_path / "model.safetensors")
    tensors = Tensors(tmp_path)
    np.testing.assert_array_equal(tensors.read("a", (slice(0, 1), slice(0, 2))), [[0, 1]])
    with pytest.raises(ValueError, match="tensor a holds NaN"):
        tensors.read("a", (slice(1, 2), slice(0, 2)))


@pytest.mark.parametrize(("limit", "files"), [(100, 1), (40, 1), (32, 2), (24, 2), (9, 3), (1, 3)])
def test_files_are_filled_up_to_the_limit_in_order(tmp_path, limit, files):
    tensors = LEFT | RIGHT  # 24, 8 and 8 bytes
    sizes = {name: value.nbytes for name, value in tensors.items()}
    write_tensors(tmp_path, iter(tensors.items()), sizes=sizes, limit=limit)
    assert len(list(tmp_path.glob("*.safetensors"))) == files
    assert (tmp_path / INDEX_FILE).is_file() == (files > 1)
    found = Tensors(tmp_path)
    assert sorted(found.headers) == sorted(tensors)
    for name, value in tensors.items():
        whole = tuple(slice(0, n) for n in value.shape)
        np.testing.assert_array_equal(found.read(name, whole), value)

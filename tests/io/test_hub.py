"""Names of the Hugging Face hub: the folder in the cache, in the layout of its own tool."""

from __future__ import annotations

import json
import socket

import huggingface_hub.constants
import pytest

from rapo_jax.config.read import read_settings
from rapo_jax.config.rules import missing_models
from rapo_jax.io.hub import cached_folder, download, is_hub_name

NAME, COMMIT = "Qwen/Qwen2.5-0.5B-Instruct", "7ae557604adf67be50417f59c2c2f167def9a775"


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """An empty cache of the hub, without a network."""

    def no_network(*args):
        raise AssertionError("a run must not use the network")

    monkeypatch.setattr(socket.socket, "connect", no_network)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.chdir(tmp_path)
    return tmp_path / "hub"


def put(cache, name, **files):
    """A model as `hf download` keeps it: blobs, links to them by commit, and the branch."""
    folder = cache / f"models--{name.replace('/', '--')}"
    snapshot = folder / "snapshots" / COMMIT
    for part in (snapshot, folder / "refs", folder / "blobs"):
        part.mkdir(parents=True)
    (folder / "refs" / "main").write_text(COMMIT)
    for number, (file, text) in enumerate(files.items()):
        (folder / "blobs" / f"{number}").write_text(text)
        (snapshot / file).symlink_to(f"../../blobs/{number}")
    return snapshot


def test_a_name_is_the_folder_in_the_cache_of_each_key_that_takes_one(cache, small_config):
    snapshot = put(cache, NAME, **{"config.json": json.dumps({})})
    assert cached_folder(NAME) == str(snapshot)
    keys = ("model.folder", "tokenizer.folder", "retrieval.encoder_folder")
    changes = dict.fromkeys(keys, NAME) | {"search_index.encoder_folder": NAME}
    changes |= {"buffer.checkpoint": f"{NAME}, runs"}
    s = read_settings(small_config(changes))
    folders = (s.model.folder, s.tokenizer.folder, s.retrieval.encoder_folder)
    assert {*folders, s.search_index.encoder_folder} == {str(snapshot)}
    assert s.buffer.checkpoints == (str(snapshot), "runs")


@pytest.mark.parametrize(
    ("key", "more"),
    [
        ("model.folder", {}),
        ("tokenizer.folder", {}),
        ("buffer.checkpoint", {"buffer.agent": "checkpoint"}),
        ("retrieval.encoder_folder", {"retrieval.encoder": "minilm"}),
        ("search_index.encoder_folder", {"stages": ("search_index",), "search_index.corpus": "c"}),
    ],
)
def test_a_name_that_is_not_there_is_refused_with_the_command_that_fetches_it(
    cache, small_config, key, more
):
    with pytest.raises(ValueError) as refused:
        read_settings(small_config({key: NAME} | more))
    assert str(refused.value).startswith(f"{key}={NAME!r}: there is no such folder, and no model")
    assert str(refused.value).endswith(f"of the hub, fetch it: hf download {NAME}")


HF = """#!/usr/bin/env bash
[ "$1" = download ] || exit 1
mkdir -p "CACHE/snapshots/COMMIT" "CACHE/refs"
echo -n COMMIT > "CACHE/refs/main"
"""
"""`hf` of a machine with a network."""


@pytest.mark.parametrize("offline", [False, True])
def test_a_name_is_downloaded_where_hf_may_use_a_network(
    cache, small_config, tmp_path, monkeypatch, offline
):
    program = tmp_path / "hf"
    text = HF.replace("CACHE", str(cache / f"models--{NAME.replace('/', '--')}"))
    program.write_text(text.replace("COMMIT", COMMIT))
    program.chmod(0o755)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", offline)
    config = small_config({"model.folder": NAME})
    download(missing_models(read_settings(config, files=False)), program=str(program))
    if offline:
        with pytest.raises(ValueError, match="hf download"):
            read_settings(config)
    else:
        assert COMMIT in read_settings(config).model.folder


def test_an_interrupted_download_is_missing_and_one_without_weights_is_not(cache):
    index = json.dumps({"weight_map": {"a": "one.safetensors", "b": "two.safetensors"}})
    put(cache, "a/cut", **{"config.json": "{}"})
    (cache / "models--a--cut" / "blobs" / "abc.incomplete").write_text("")
    files = {"config.json": "{}", "model.safetensors.index.json": index, "one.safetensors": ""}
    put(cache, "a/shard", **files)
    whole = put(cache, "a/whole", **files, **{"two.safetensors": ""})
    tokenizer = put(cache, "a/tokenizer", **{"tokenizer.json": "{}"})
    found = [cached_folder(f"a/{name}") for name in ("cut", "shard", "whole", "tokenizer")]
    assert found == ["a/cut", "a/shard", str(whole), str(tokenizer)]


def test_a_download_that_fails_leaves_the_refusal(cache, small_config):
    download([NAME], program="false")
    with pytest.raises(ValueError, match="hf download"):
        read_settings(small_config({"model.folder": NAME}))


def test_a_published_model_is_planned_for_by_its_name_alone(cache, small_config):
    s = read_settings(small_config({"model.folder": NAME, "stages": ("plan",)}))
    assert s.model.folder == NAME


def test_a_folder_of_that_form_comes_first_and_other_paths_are_no_names(cache, tmp_path):
    put(cache, NAME)
    (tmp_path / NAME).mkdir(parents=True)
    assert cached_folder(NAME) == NAME
    for path in ("", "runs", "/a/b", "./a/b", "a/b/c", "../a", "~/a"):
        assert not is_hub_name(path)

"""The cache on disk: it outlives its process, and refuses another file."""

from __future__ import annotations

import errno
import logging
import sqlite3
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from rapo_jax.io.cache import DiskCache, cache_key
from tests.io.full_disk import room_for


def test_a_text_is_there_after_closing_and_the_last_one_counts(tmp_path):
    path = tmp_path / "new" / "cache.sqlite"
    cache = DiskCache(path)
    assert cache.get("a") is None
    for text in ("1", "two\n\x00\N{GRINNING FACE}"):
        cache.put("a", text)
    cache.close()
    assert DiskCache(path).get("a") == "two\n\x00\N{GRINNING FACE}"


def test_threads_and_a_second_opener_see_each_others_texts(tmp_path):
    first, second = (DiskCache(tmp_path / "cache") for _ in range(2))
    with ThreadPoolExecutor(4) as threads:
        list(threads.map(lambda i: (first, second)[i % 2].put(str(i), str(i)), range(40)))
    assert [first.get(str(i)) for i in range(40)] == [str(i) for i in range(40)]


def test_a_file_that_is_no_cache_is_refused_with_a_remedy(tmp_path):
    (tmp_path / "cache").write_text("no database\n" * 100)
    with pytest.raises(ValueError, match="^tools.search.cache='.*cache': unreadable .*; delete it"):
        DiskCache(tmp_path / "cache", key="tools.search.cache")


def test_a_folder_that_cannot_be_made_is_refused_by_key_value_and_remedy(tmp_path, monkeypatch):
    def refused(*_, **__):
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(Path, "mkdir", refused)
    path = tmp_path / "data" / "search.sqlite"
    with pytest.raises(ValueError) as caught:
        DiskCache(path, key="tools.search.cache")
    assert str(caught.value) == (
        f"tools.search.cache='{path}': cannot be written (Permission denied); name a file in a "
        "folder that you may write"
    )


def test_a_file_that_cannot_be_made_is_not_to_be_deleted(tmp_path):
    (tmp_path / "cache").mkdir()
    with pytest.raises(ValueError, match="cannot be written .*; name a file in a folder that you"):
        DiskCache(tmp_path / "cache")


@pytest.mark.parametrize("bad", ["NULL", "3", "x'00ff'", "CAST(x'ff41' AS TEXT)"])
def test_a_row_that_is_no_text_counts_as_missing_and_is_replaced(tmp_path, bad):
    cache = DiskCache(tmp_path / "cache")
    with sqlite3.connect(tmp_path / "cache") as db:
        db.execute(f"INSERT INTO texts VALUES ('a', {bad})")
    assert cache.get("a") is None
    cache.put("a", "good")
    assert cache.get("a") == "good"


@pytest.mark.parametrize("new", [True, False])
def test_a_full_disk_costs_the_cache_and_nothing_else(tmp_path, caplog, new):
    path = tmp_path / "cache"
    if not new:
        DiskCache(path).put("old", "1")
    with room_for(0), caplog.at_level(logging.WARNING):
        cache = DiskCache(path)
        for key in "ab":
            cache.put(key, "1")
        assert [cache.get(key) for key in ("a", "b", "old")] == [None, None, None if new else "1"]
    assert cache.unkept == 2 and len(caplog.records) == 1


def test_a_cache_that_cannot_be_written_is_one_warning(tmp_path, caplog):
    cache = DiskCache(tmp_path / "cache")
    with sqlite3.connect(tmp_path / "cache") as db:
        db.execute(
            "CREATE TRIGGER full BEFORE INSERT ON texts BEGIN SELECT RAISE(ABORT, 'full'); END"
        )
    with caplog.at_level(logging.WARNING):
        for key in "ab":
            cache.put(key, "1")
    assert [cache.get(key) for key in "ab"] == [None, None]
    assert [record.getMessage() for record in caplog.records] == [
        f"cache {tmp_path / 'cache'}: full; what it cannot keep is asked for again"
    ]


def test_keys_are_equal_for_equal_values_alone():
    assert cache_key({"a": 1, "b": 2}) == cache_key({"b": 2, "a": 1})
    assert len({cache_key("ab", "c"), cache_key("a", "bc"), cache_key(["ab"], "c")}) == 3

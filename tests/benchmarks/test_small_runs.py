"""What the campaign of faults compares of two runs."""

from __future__ import annotations

from benchmarks.small_runs import difference


def test_a_changed_byte_of_the_buffer_is_found(tmp_path):
    folders = [tmp_path / name for name in "ab"]
    for folder in folders:
        (folder / "buffer" / "traces").mkdir(parents=True)
        (folder / "metrics.jsonl").write_text("")
        for name in ("items.jsonl", "keys.npy", "manifest.json"):
            (folder / "buffer" / "traces" / name).write_bytes(b"same")
    assert difference(*folders) == ""
    for name in ("items.jsonl", "keys.npy", "manifest.json"):
        (folders[0] / "buffer" / "traces" / name).write_bytes(b"sama")
        assert difference(*folders) == f"buffer/traces/{name}"
        (folders[0] / "buffer" / "traces" / name).write_bytes(b"same")

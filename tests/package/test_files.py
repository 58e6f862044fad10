"""Files that are whole or not there; packages that are there or named."""

import os
from pathlib import Path

import pytest

from cwkernels import files, requires
from cwkernels.testing import refused


def test_a_file_is_written_and_replaced(tmp_path: Path) -> None:
    path = tmp_path / "file"
    for content in (b"first", b"second"):
        files.write_whole(path, content)
        assert path.read_bytes() == content
    assert list(tmp_path.iterdir()) == [path]


def test_what_fails_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "file"
    files.write_whole(path, b"old")

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left on device"):
        files.write_whole(path, b"new")
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_file_is_synced_before_its_name_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done = []
    fsync, replace = os.fsync, Path.replace

    def syncing(descriptor: int) -> None:
        done.append("sync")
        fsync(descriptor)

    def renaming(self: Path, target: Path) -> Path:
        done.append("rename")
        return replace(self, target)

    monkeypatch.setattr(os, "fsync", syncing)
    monkeypatch.setattr(Path, "replace", renaming)
    files.write_whole(tmp_path / "file", b"content")
    assert done == ["sync", "rename", "sync"]


def test_a_package_that_is_there() -> None:
    assert requires.module("json.decoder", "test").JSONDecoder


def test_a_package_that_is_absent_is_one_line() -> None:
    line = "rank: wanted the package no_such, got none: pip install 'cwkernels[nas]'"
    with refused(ImportError, line):
        requires.module("no_such.part", "rank")

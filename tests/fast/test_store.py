"""Tensors on disk: what is put is got again, by any process, and nothing half-written is ever read."""

import errno
import os

import pytest
import torch

from common.errors import UserError
from common.fast import Store

GIB = 2**30


def tensors(number):
    generator = torch.Generator().manual_seed(number)
    return [torch.randn(3, 4, generator=generator), torch.randn(5, generator=generator).bfloat16()]


def key(number):
    return number.to_bytes(16, "little")


def filled(folder, count=3, limit=GIB):
    store = Store(folder, "a", limit)
    store.put({key(i): tensors(i) for i in range(count)})
    return store


def holds(store, number):
    found = store.get(key(number))
    return found is not None and all(map(torch.equal, found, tensors(number)))


def test_what_was_put_is_got_by_others_too(tmp_path):
    one, two = filled(tmp_path), Store(tmp_path, "a", GIB)
    assert all(holds(store, i) for store in (one, two) for i in range(3)) and one.get(key(3)) is None
    two.put({key(3): tensors(3), key(0): tensors(3)})
    assert holds(one, 3) and holds(one, 0), "a key that is there stays as it is"
    assert Store(tmp_path, "b", GIB).get(key(0)) is None


def test_the_limit_is_kept_and_told_once(tmp_path, capsys):
    size = (filled(tmp_path / "whole", 1).folder / "a.bin").stat().st_size
    store = filled(tmp_path / "small", 3, limit=2 * size)
    store.put({key(7): tensors(7)})
    assert holds(store, 1) and store.get(key(2)) is None and store.get(key(7)) is None
    (line,) = capsys.readouterr().err.splitlines()
    assert "--feature-cache-gb" in line and (tmp_path / "small/a.bin").stat().st_size <= 2 * size


def test_a_full_disk_is_no_error(tmp_path, monkeypatch, capsys):
    store = filled(tmp_path)

    def full(*args):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "pwrite", full)
    store.put({key(4): tensors(4)})
    assert store.get(key(4)) is None and holds(store, 2) and "the disk is full" in capsys.readouterr().err


def test_what_a_killed_process_left_is_not_read(tmp_path):
    filled(tmp_path)
    for ending, junk in (("bin", b"half a tensor"), ("idx", b"half an entry")):
        with (tmp_path / f"a.{ending}").open("ab") as file:
            file.write(junk)
    store = Store(tmp_path, "a", GIB)
    store.put({key(3): tensors(3)})
    assert all(holds(Store(tmp_path, "a", GIB), i) for i in range(4))


def test_damaged_bytes_are_computed_anew(tmp_path):
    filled(tmp_path)
    path = tmp_path / "a.bin"
    path.write_bytes(b"\xff" * 40)
    assert Store(tmp_path, "a", GIB).get(key(0)) is None and Store(tmp_path, "a", GIB).get(key(2)) is None


def test_a_folder_that_cannot_be_written_is_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="`--feature-cache .*cannot be written"):
        Store(tmp_path / "file", "a", GIB)

"""Finding the files that a user names."""

import pytest

from common.errors import UserError
from common.files import find_files


def test_files_are_taken_as_they_are_and_folders_searched_below(tmp_path):
    (tmp_path / "in" / "deep").mkdir(parents=True)
    for name in ("b.JPG", "a.png", "deep/c.png", "notes.txt"):
        (tmp_path / "in" / name).touch()
    single = tmp_path / "in" / "notes.txt"
    found = find_files([str(single), str(tmp_path / "in")], (".jpg", ".png"), "images")
    assert [p.name for p in found] == ["notes.txt", "a.png", "b.JPG", "c.png"]


def test_a_missing_path_and_an_empty_folder_are_named(tmp_path):
    with pytest.raises(UserError, match="there is no file or folder .*gone"):
        find_files([str(tmp_path / "gone")], (".jpg",), "images (.jpg)")
    with pytest.raises(UserError, match=r"holds no images \(\.jpg\)\."):
        find_files([str(tmp_path)], (".jpg",), "images (.jpg)")

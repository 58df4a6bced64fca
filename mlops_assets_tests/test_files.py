"""Which file a path in an index means, and what is only a pointer of Git LFS: pure rules, on names and first bytes."""

from __future__ import annotations

import unicodedata
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlops_assets.files import AMBIGUOUS, MISSING, OUTSIDE, PATH_REASONS, Paths, is_lfs_pointer, normal_path
from mlops_assets.lifecycle.dataset import Entry
from mlops_assets_tests.factories import POINTER


def entry(path: str, content: str = "", version: str = "v1") -> Entry:
    return Entry(f"landing/s/{version}/{path}", 1, content or path, "e", datetime(2026, 11, 30, tzinfo=UTC), version)


@pytest.mark.parametrize(
    ("given", "path"),
    [
        ("images\\a.jpg", "images/a.jpg"),
        (".\\images\\\\a.jpg", "images/a.jpg"),
        ("./images//./a.jpg", "images/a.jpg"),
        ("images/12:30:00.jpg", "images/12:30:00.jpg"),
        (unicodedata.normalize("NFD", "결함/가.jpg"), "결함/가.jpg"),
        ("...", "..."),
        *(
            (outside, None)
            for outside in ("", " ", "C:\\a.jpg", "c:a.jpg", "\\\\host\\share\\a.jpg", "\\a.jpg", "/a.jpg", "..\\a.jpg", "..")
        ),
        *((outside, None) for outside in ("..\\a.jpg", "a/../b", "a\\..\\..\\b", "s3://b/a.jpg", "file:/a.jpg", "a\x00.jpg", "a\n.jpg")),
    ],
)
def test_a_path_is_read_as_a_person_would(given: str, path: str | None) -> None:
    assert normal_path(given) == path


@given(st.text())
def test_no_path_leads_out_of_the_data_set(given: str) -> None:
    path = normal_path(given)
    assert path is None or not (path.startswith("/") or ".." in path.split("/") or "\\" in path)
    found = Paths([entry("a.jpg")]).find(entry("index.json"), given)
    assert isinstance(found, Entry) or found[0] in PATH_REASONS


def test_what_two_files_answer_to_is_never_chosen_silently() -> None:
    nfd = unicodedata.normalize("NFD", "가.jpg")
    paths = Paths([entry(name) for name in ("가.jpg", nfd, "x/a.jpg", "a.jpg", "B.jpg", "b.JPG")])
    index = entry("x/index.json")
    for written in ("가.jpg", nfd, "a.jpg", "b.jpg"):
        found = paths.find(index, written)
        assert isinstance(found, tuple) and found[0] == AMBIGUOUS and " or " in found[1], written
    assert paths.find(index, "B.jpg") == entry("B.jpg"), "written as it is"
    same = Paths([entry("가.jpg", "1"), entry(nfd, "1")])
    assert isinstance(same.find(index, "가.jpg"), Entry), "the same bytes: whichever"


def test_the_indexs_own_version_goes_before_those_it_extends() -> None:
    paths = Paths([entry("a.jpg", "old", "v1"), entry("b.jpg", "old", "v1"), entry("a.jpg", "new", "v2")])
    index = entry("index.json", version="v2")
    assert [getattr(paths.find(index, name), "from_version", None) for name in ("a.jpg", "b.jpg")] == ["v2", "v1"]
    assert paths.find(index, "b.jpg", beside_only=True) == (MISSING, "b.jpg")
    assert paths.find(index, "../v1/b.jpg") == (OUTSIDE, "../v1/b.jpg")


@pytest.mark.parametrize(
    ("content", "pointer"),
    [
        (POINTER, True),
        (POINTER.replace(b"\n", b"\r\n"), True),
        (b"\xef\xbb\xbf" + POINTER, True),
        (b"version https://hawser.github.com/spec/v1\noid sha256:00\nsize 1\n", True),
        (b"", False),
        (b"version 2\nid\tdocument\tlabel\n", False),
        (b"see version https://git-lfs.github.com/spec/v1\n", False),
    ],
)
def test_a_pointer_of_git_lfs_is_known_by_its_first_line(content: bytes, pointer: bool) -> None:
    assert is_lfs_pointer(content) is pointer


@pytest.mark.parametrize("path", ["a/b/c.jpg", "a\\b\\c.jpg", "a/b\\c.jpg"])
def test_folders_that_an_archive_of_windows_wrote_into_a_name_are_folders(path: str) -> None:
    assert entry(path).folders_and_name == ("a/b", "c.jpg")

import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from atp_models.demo.fetching import fetch, file_sha256, unpack
from atp_models.demo.parts import Part
from atp_runtime.errors import CheckFailedError, MachineError

MakeWheel = Callable[..., Part]


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that is the only package index pip knows."""
    folder = tmp_path / "index"
    folder.mkdir()
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    return folder


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    folder = tmp_path / "cache"
    folder.mkdir()
    return folder


def ignore(line: str) -> None:
    pass


def test_fetch_downloads_once_and_leaves_only_the_archive(
    index: Path, cache: Path, make_wheel: MakeWheel
) -> None:
    part = make_wheel(index, "tiny-part", "tiny/file.bin", b"content")
    lines: list[str] = []
    wheel = fetch(part, cache_dir=cache, report=lines.append)
    assert wheel.read_bytes() == (index / part.archive).read_bytes()
    assert list(cache.iterdir()) == [wheel]
    assert len(lines) == 1
    (index / part.archive).unlink()
    assert fetch(part, cache_dir=cache, report=lines.append) == wheel
    assert len(lines) == 1


def test_fetch_removes_and_refuses_a_cached_archive_when_its_hash_is_wrong(
    cache: Path, make_wheel: MakeWheel
) -> None:
    part = make_wheel(cache, "tiny-part", "tiny/file.bin", b"content")
    with zipfile.ZipFile(cache / part.archive, "a") as archive:
        archive.writestr("tiny/more.bin", b"tampered")
    with pytest.raises(CheckFailedError, match=part.sha256):
        fetch(part, cache_dir=cache, report=ignore)
    assert list(cache.iterdir()) == []


def test_fetch_keeps_nothing_when_the_downloaded_hash_is_wrong(
    index: Path, cache: Path, make_wheel: MakeWheel
) -> None:
    part = make_wheel(index, "tiny-part", "tiny/file.bin", b"content")
    with pytest.raises(CheckFailedError):
        fetch(replace(part, sha256="0" * 64), cache_dir=cache, report=ignore)
    assert list(cache.iterdir()) == []


def test_fetch_names_the_archive_and_the_cache_when_there_is_no_such_package(
    index: Path, cache: Path, make_wheel: MakeWheel
) -> None:
    part = make_wheel(index, "tiny-part", "tiny/file.bin", b"content")
    (index / part.archive).unlink()
    with pytest.raises(MachineError) as caught:
        fetch(part, cache_dir=cache, report=ignore)
    assert part.archive in caught.value.fix
    assert str(cache) in caught.value.fix
    assert list(cache.iterdir()) == []


def test_fetch_refuses_to_begin_when_the_disk_cannot_hold_the_part(
    index: Path, cache: Path, make_wheel: MakeWheel
) -> None:
    part = replace(make_wheel(index, "tiny-part", "tiny/f", b"content"), size=1 << 60)
    with pytest.raises(MachineError, match="MB are needed"):
        fetch(part, cache_dir=cache, report=ignore)


def test_unpack_gives_the_member_of_the_wheel(
    cache: Path, tmp_path: Path, make_wheel: MakeWheel
) -> None:
    part = make_wheel(cache, "tiny-part", "tiny/deep/file.bin", b"content")
    file = unpack(part, tmp_path, cache_dir=cache, report=ignore)
    assert file == tmp_path / "file.bin"
    assert file.read_bytes() == b"content"


def test_file_sha256_is_that_of_the_published_test_vector(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"abc")
    expected = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"  # FIPS 180-2
    assert file_sha256(tmp_path / "file") == expected

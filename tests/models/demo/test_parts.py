import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from atp_models.demo.parts import Part, default_cache_dir, fetch, unpack
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


def test_fetch_downloads_once_and_leaves_only_the_wheel(
    index: Path, cache: Path, make_wheel: MakeWheel
) -> None:
    part = make_wheel(index, "tiny-part", "tiny/file.bin", b"content")
    lines: list[str] = []
    wheel = fetch(part, cache_dir=cache, report=lines.append)
    assert wheel.read_bytes() == (index / part.wheel).read_bytes()
    assert list(cache.iterdir()) == [wheel]
    assert len(lines) == 1
    (index / part.wheel).unlink()
    assert fetch(part, cache_dir=cache, report=lines.append) == wheel
    assert len(lines) == 1


def test_fetch_removes_and_refuses_a_cached_wheel_when_its_hash_is_wrong(
    cache: Path, make_wheel: MakeWheel
) -> None:
    part = make_wheel(cache, "tiny-part", "tiny/file.bin", b"content")
    with zipfile.ZipFile(cache / part.wheel, "a") as archive:
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


def test_fetch_names_the_wheel_and_the_cache_when_pip_finds_no_package(
    index: Path, cache: Path, make_wheel: MakeWheel
) -> None:
    part = make_wheel(index, "tiny-part", "tiny/file.bin", b"content")
    (index / part.wheel).unlink()
    with pytest.raises(MachineError) as caught:
        fetch(part, cache_dir=cache, report=ignore)
    assert part.wheel in caught.value.fix
    assert str(cache) in caught.value.fix
    assert list(cache.iterdir()) == []


def test_fetch_says_no_index_answered_when_there_is_no_network(
    cache: Path, make_wheel: MakeWheel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    part = make_wheel(tmp_path, "tiny-part", "tiny/file.bin", b"content")
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")
    monkeypatch.setenv("PIP_RETRIES", "1")
    with pytest.raises(MachineError) as caught:
        fetch(part, cache_dir=cache, report=ignore)
    assert caught.value.why == "no package index answered"


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


def test_default_cache_dir_is_under_xdg_cache_home_when_that_is_set(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert default_cache_dir() == tmp_path / "atp-llava"


def test_default_cache_dir_is_under_home_when_xdg_cache_home_is_not_set(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert default_cache_dir() == tmp_path / ".cache" / "atp-llava"

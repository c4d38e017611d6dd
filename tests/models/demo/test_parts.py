from pathlib import Path

import pytest

from atp_models.demo.parts import (
    EASY_VQA,
    FLUENT_ARTWORK,
    LANGUAGE_MODEL,
    NOTO_ARTWORK,
    VISION_TOWER,
    Part,
    default_cache_dir,
)

PARTS = (LANGUAGE_MODEL, VISION_TOWER, NOTO_ARTWORK, FLUENT_ARTWORK, EASY_VQA)


@pytest.mark.parametrize("part", PARTS, ids=lambda part: part.package)
def test_every_part_is_pinned_by_exact_version_and_hash(part: Part) -> None:
    assert len(bytes.fromhex(part.sha256)) == 32
    assert f"-{part.version}" in part.archive
    assert part.archive.endswith(".whl" if part.registry == "pypi" else ".tgz")


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
